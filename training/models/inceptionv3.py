"""Inception V3: branches of convolutions side by side.

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, table 1, brought to 32 x 32
pixels as in "ResKD", 2020, table VII: no stride in the stem, a 3x3 convolution after the pool of modules A, and an
average where module D pools.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from training.models.blocks import Activated, Kernel, conv_norm
from training.models.contract import GlobalPool, Network, Stage, initialise
from training.models.families import family

CHANNELS = 2048
Step = tuple[int, Kernel]
ACROSS, DOWN = (1, 7), (7, 1)


class Chain(nn.Sequential):
    """One after another, of which the last ends in a ReLU."""

    def preact(self, x: Tensor) -> Tensor:
        """Without the last ReLU."""
        for module in self[:-1]:
            x = module(x)
        before: Tensor = self[-1].preact(x)  # type: ignore[operator]
        return before


def chain(channels: int, *steps: Step, stride: int = 1) -> Chain:
    """Convolutions one after another, each with BN and ReLU; a stride is the last one's, which then does not pad."""
    layers = []
    for number, (width, kernel) in enumerate(steps):
        reduces = stride > 1 and number == len(steps) - 1
        norm = conv_norm(channels, width, kernel, stride, padding=0) if reduces else conv_norm(channels, width, kernel)
        layers.append(Activated(norm))
        channels = width
    return Chain(*layers)


class Beside(nn.Module):
    """Every branch on the same input, their results side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.cat([branch(x) for branch in self.branches], 1)

    def preact(self, x: Tensor) -> Tensor:
        """Without the last ReLU of each, where every one has it."""
        return torch.cat([branch.preact(x) for branch in self.branches], 1)  # type: ignore[operator]


def pooled(channels: int, width: int, kernel: int) -> Chain:
    """3x3 average, then a convolution."""
    return Chain(nn.AvgPool2d(3, 1, 1), *chain(channels, (width, kernel)))


def module_a(channels: int, pool_width: int) -> Beside:
    """Figure 5."""
    return Beside(
        chain(channels, (64, 1)),
        chain(channels, (48, 1), (64, 5)),
        chain(channels, (64, 1), (96, 3), (96, 3)),
        pooled(channels, pool_width, 3),
    )


def module_b(channels: int) -> Beside:
    """Halves the map, as in figure 10."""
    return Beside(
        chain(channels, (384, 3), stride=2),
        chain(channels, (64, 1), (96, 3), (96, 3), stride=2),
        nn.MaxPool2d(3, 2),
    )


def module_c(channels: int, inside: int) -> Beside:
    """Figure 6 with n = 7."""
    return Beside(
        chain(channels, (192, 1)),
        chain(channels, (inside, 1), (inside, DOWN), (192, ACROSS)),
        chain(channels, (inside, 1), (inside, DOWN), (inside, ACROSS), (inside, DOWN), (192, ACROSS)),
        pooled(channels, 192, 1),
    )


def module_d(channels: int) -> Beside:
    """Halves the map, as in figure 10."""
    return Beside(
        chain(channels, (192, 1), (320, 3), stride=2),
        chain(channels, (192, 1), (192, ACROSS), (192, DOWN), (192, 3), stride=2),
        nn.AvgPool2d(3, 2),
    )


def module_e(channels: int) -> Beside:
    """Figure 7."""

    def both_ways(*steps: Step) -> Chain:
        width = steps[-1][0]
        return Chain(*chain(channels, *steps), Beside(chain(width, (384, (1, 3))), chain(width, (384, (3, 1)))))

    return Beside(
        chain(channels, (320, 1)),
        both_ways((384, 1)),
        both_ways((448, 1), (384, 3)),
        pooled(channels, 192, 1),
    )


@family("inceptionv3_cifar", "inceptionv3_cifar")
def inceptionv3(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """The one network: one stage a size of the maps."""
    stem = nn.Sequential(*chain(3, (32, 3), (32, 3), (64, 3), (80, 1)), Activated(conv_norm(80, 192, 3, padding=0)))
    stages = [
        Stage(module_a(192, 32), module_a(256, 64), module_a(288, 64)),
        Stage(module_b(288), *(module_c(768, inside) for inside in (128, 160, 160, 192))),
        Stage(module_d(768), module_e(1280), module_e(CHANNELS)),
    ]
    pool = nn.Sequential(GlobalPool(), nn.Dropout(0.5))
    return initialise(Network(stem, stages, CHANNELS, num_classes, pool=pool))
