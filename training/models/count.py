"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def params(net: nn.Module) -> int:
    """Trainable parameters: convolutions, linear layers, batch norm weights and biases; no running statistics."""
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of size x size; biases are ignored.

    What papers print as FLOPs. The projections of attention are linear layers; its products of two activations are not
    counted.
    """
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += output.numel() * kernel * module.in_channels // module.groups
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.MultiheadAttention):  # its four projections are no modules that a hook sees
            query, key, value = inputs[:3]
            total += (2 * query.numel() + key.numel() + value.numel()) * module.embed_dim

    hooks = [module.register_forward_hook(count) for module in net.modules()]
    training = net.training
    device = next(net.parameters()).device
    try:
        with torch.no_grad():
            net.eval().forward(torch.zeros(1, 3, size, size, device=device))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return total
