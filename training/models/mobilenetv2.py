"""MobileNetV2: inverted residuals that end without an activation.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2; the variants are those
of "Contrastive Representation Distillation", 2020 (ReLU instead of ReLU6), of "ResKD", 2020, table VII (biases, and a
1x1 stem whose padding makes 34x34 of 32x32), and of "Prune Your Model Before Distill It", 2022.

Names:
    mobilenetv2_half, mobilenetv2_x2        half and whole width; the second is twice as wide as the first
    mobilenetv2_cifar, mobilenetv2_tiny
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.blocks import Activated, conv_norm
from training.models.contract import GlobalPool, Network, Stage, initialise
from training.models.families import family, one_of

ROWS = (
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)  # expansion, width, blocks
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # rows
LAST = 1280


@dataclass(frozen=True)
class Variant:
    """What differs between the MobileNetV2s of the papers.

    Attributes:
        strides: of each row's first block.
        stem: kernel, stride, padding.
        width: factor of all channels but the last 1280.
        activation: after every convolution that has one.
        bias: convolutions have biases.
        expand_always: the first row, whose expansion is 1, has its expanding convolution all the same.
        dropout: before the classifier.
    """

    strides: tuple[int, ...]
    stem: tuple[int, int, int]
    width: float = 1.0
    activation: Callable[[Tensor], Tensor] = functional.relu6
    bias: bool = False
    expand_always: bool = True
    dropout: float = 0.0


VARIANTS = {
    "mobilenetv2_half": Variant((1, 1, 2, 2, 1, 2, 1), (3, 2, 1), width=0.5, activation=torch.relu),
    "mobilenetv2_x2": Variant((1, 1, 2, 2, 1, 2, 1), (3, 2, 1), activation=torch.relu),
    "mobilenetv2_cifar": Variant((1, 2, 2, 2, 1, 1, 1), (1, 1, 1), bias=True),
    "mobilenetv2_tiny": Variant((1, 2, 2, 2, 1, 2, 1), (3, 2, 1), expand_always=False, dropout=0.2),
}


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down without activation; plus the input where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, variant: Variant) -> None:
        super().__init__()
        inside = channels_in * expansion
        act, bias = variant.activation, variant.bias
        layers: list[nn.Module] = []
        if expansion > 1 or variant.expand_always:
            layers.append(Activated(conv_norm(channels_in, inside, 1, bias=bias), act))
        layers.append(Activated(conv_norm(inside, inside, 3, stride, groups=inside, bias=bias), act))
        layers.append(conv_norm(inside, channels_out, 1, bias=bias))
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


@family(one_of(VARIANTS), *VARIANTS)
def mobilenetv2(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """One of the variants."""
    variant = VARIANTS[name[0]]
    kernel, stride, padding = variant.stem
    channels = int(32 * variant.width)
    stem = Activated(conv_norm(3, channels, kernel, stride, padding=padding, bias=variant.bias), variant.activation)
    stages = []
    for rows in STAGES:
        blocks = []
        for row in rows:
            expansion, width, count = ROWS[row]
            for place in range(count):
                width_out, first = int(width * variant.width), variant.strides[row]
                blocks.append(InvertedResidual(channels, width_out, first if place == 0 else 1, expansion, variant))
                channels = width_out
        stages.append(Stage(*blocks))
    head = Activated(conv_norm(channels, LAST, 1, bias=variant.bias), variant.activation)
    pool = nn.Sequential(GlobalPool(), nn.Dropout(variant.dropout))
    return initialise(Network(stem, stages, LAST, num_classes, head=head, pool=pool))
