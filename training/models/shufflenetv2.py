"""ShuffleNetV2: half of the channels pass by, the other half is convolved, then both are shuffled.

Source: Ma et al., "ShuffleNet V2", 2018, figure 3 and table 5; the variants are those of "Contrastive Representation
Distillation", 2020, and of "ResKD", 2020, table VII.

Names:
    shufflenetv2, shufflenetv2_x1.5     a 1x1 stem
    shufflenetv2_cifar                  a 3x3 stem without ReLU, biases, and down units that narrow only at their end
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.models.blocks import Activated, conv_norm, shuffle
from training.models.contract import Network, Stage, initialise
from training.models.families import family, one_of

STEM = 24
UNITS = (3, 7, 3)  # after each stage's down unit
LAST = 1024


@dataclass(frozen=True)
class Variant:
    """What differs between the ShuffleNetV2s of the papers.

    Attributes:
        widths: of the stages.
        zoo: the conventions of table VII: stem, biases, down units.
    """

    widths: tuple[int, int, int]
    zoo: bool = False


VARIANTS = {
    "shufflenetv2": Variant((116, 232, 464)),
    "shufflenetv2_x1.5": Variant((176, 352, 704)),
    "shufflenetv2_cifar": Variant((116, 232, 464), zoo=True),
}


def branch(channels_in: int, inside: int | None, channels_out: int, stride: int, *, bias: bool) -> Activated:
    """1x1-BN-ReLU, depthwise 3x3-BN, 1x1-BN-ReLU; without `inside` it begins with the depthwise convolution."""
    width = inside or channels_in
    layers = [
        conv_norm(width, width, 3, stride, groups=width, bias=bias),
        conv_norm(width, channels_out, 1, bias=bias),
    ]
    first = [Activated(conv_norm(channels_in, width, 1, bias=bias))] if inside else []
    return Activated(nn.Sequential(*first, *layers))


class Unit(nn.Module):
    """Half of the channels beside what the branch makes of the other half, shuffled."""

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        half = channels // 2
        self.branch = branch(half, half, half, 1, bias=bias)

    def preact(self, x: Tensor) -> Tensor:
        """Before the last ReLU, which would change nothing in the half that passes by."""
        passing, worked = x.chunk(2, 1)
        return shuffle(torch.cat([passing, self.branch.preact(worked)], 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        passing, worked = x.chunk(2, 1)
        return shuffle(torch.cat([passing, self.branch(worked)], 1), 2)


class DownUnit(nn.Module):
    """Two branches of stride 2 side by side, shuffled."""

    def __init__(self, channels_in: int, channels_out: int, inside: int, *, bias: bool) -> None:
        super().__init__()
        half = channels_out // 2
        self.left = branch(channels_in, None, half, 2, bias=bias)
        self.right = branch(channels_in, inside, half, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / 2, W / 2)."""
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


@family(one_of(VARIANTS), *VARIANTS)
def shufflenetv2(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """One of the variants."""
    variant = VARIANTS[name[0]]
    bias = variant.zoo
    stem: nn.Module = conv_norm(3, STEM, 3, bias=True) if variant.zoo else Activated(conv_norm(3, STEM, 1))
    stages = []
    channels = STEM
    for width, count in zip(variant.widths, UNITS, strict=True):
        down = DownUnit(channels, width, channels if variant.zoo else width // 2, bias=bias)
        stages.append(Stage(down, *(Unit(width, bias=bias) for _ in range(count))))
        channels = width
    head = Activated(conv_norm(channels, LAST, 1, bias=bias))
    return initialise(Network(stem, stages, LAST, num_classes, head=head))
