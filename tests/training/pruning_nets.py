"""Networks whose batch norms differ channel by channel, and what silences channels without removing them."""

from __future__ import annotations

import torch
from torch import nn

from training import models


def marked(name: str, size: int, classes: int = 5) -> nn.Module:
    """A network in eval mode with random scales, offsets and statistics."""
    torch.manual_seed(0)
    net = models.build(name, classes, size)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, least in ((module.weight, 0.1), (module.running_var, 0.5)):
                assert values is not None
                values.data = least + torch.rand(values.shape, generator=generator)
            for values in (module.bias, module.running_mean):
                assert values is not None
                values.data = 0.1 * torch.randn(values.shape, generator=generator)
    return net.eval()


def silence(net: nn.Module, kept: dict[str, list[int]]) -> None:
    """Make every channel that is not kept zero, where it is."""
    for name, places in kept.items():
        norm = net.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[places] = False
        norm.weight.data[gone] = 0
        norm.bias.data[gone] = 0
