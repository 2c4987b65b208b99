"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cascade.errors import RecipeError


def params(net: nn.Module) -> int:
    """Trainable parameters: convolutions, linear layers, batch norm weights and biases; no running statistics."""
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image of size x size; biases are ignored.

    What papers print as FLOPs. Shapes decide it, so nothing is computed: the network runs on tensors without numbers.

    Raises:
        RecipeError: the network cannot take images of this size.
    """
    shapes = {name: value.to("meta") for name, value in net.state_dict(keep_vars=True).items()}
    training = net.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(net.eval(), shapes, torch.zeros(1, 3, size, size, device="meta"))
    except (AssertionError, RuntimeError) as error:
        raise RecipeError(f"the network cannot take images of {size} pixels: {error}") from error
    finally:
        net.train(training)
    total: int = counter.get_total_flops()
    return total // 2
