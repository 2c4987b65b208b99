"""ShuffleNet: grouped 1x1 convolutions, and a shuffle that lets the groups see each other.

Source: Zhang et al., "ShuffleNet", 2018, table 1 with g = 3 and a 1x1 stem, as "Contrastive Representation
Distillation", 2020, has it: a ReLU follows the depthwise convolution, and the first convolution of all has one group.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.blocks import Activated, conv_norm, shuffle
from training.models.contract import Network, Stage, initialise
from training.models.families import family

STEM = 24
GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or put beside its average if halved."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        made = channels_out if stride == 1 else channels_out - channels_in
        inside = made // 4
        self.groups = 1 if channels_in == STEM else GROUPS
        self.squeeze = Activated(conv_norm(channels_in, inside, 1, groups=self.groups))
        self.depthwise = Activated(conv_norm(inside, inside, 3, stride, groups=inside))
        self.expand = conv_norm(inside, made, 1, groups=GROUPS)

    def preact(self, x: Tensor) -> Tensor:
        """The sum, or both parts side by side, before the last ReLU."""
        y: Tensor = self.expand(self.depthwise(shuffle(self.squeeze(x), self.groups)))
        return x + y if self.stride == 1 else torch.cat([y, functional.avg_pool2d(x, 3, 2, 1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.relu(self.preact(x))


@family("shufflenetv1", "shufflenetv1")
def shufflenetv1(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """The one network."""
    stages = []
    channels = STEM
    for width, count in STAGES:
        stages.append(Stage(Unit(channels, width, 2), *(Unit(width, width, 1) for _ in range(count - 1))))
        channels = width
    return initialise(Network(Activated(conv_norm(3, STEM, 1)), stages, channels, num_classes))
