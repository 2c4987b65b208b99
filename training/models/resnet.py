"""CIFAR residual networks: three stages of basic blocks, any depth, any width, shortcut A or B.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2 (shortcut A); the widths,
stems and shortcut B of the names without a suffix are those of "Knowledge Distillation with the Reused Teacher
Classifier", 2022, whose "WRN-d-k" are post-activation networks of depth d-2.

Names:
    resnet20_a, resnet110_b     widths 16, 32, 64; A: parameter-free shortcut, B: 1x1 convolution and batch norm
    resnet20_0.75_a             the same with every width, the stem's too, times 0.75
    resnet116, resnet8x4        shortcut B; xK multiplies the stages' widths, and K = 4 has a stem of 32
    wrn40_2_simkd               depth 38, widths times 2, shortcut B; K = 4 has a stem of 32
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.models.blocks import conv_norm
from training.models.contract import Network, Stage, initialise
from training.models.families import family

WIDTHS = (16, 32, 64)
STRIDES = (1, 2, 2)


class SubsampleAndPad(nn.Module):
    """Shortcut A: every `stride`-th pixel, then zero channels, half before and half after."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def shortcut_of(channels_in: int, channels_out: int, stride: int, kind: str) -> nn.Module | None:
    """What a block adds to its result: its input, brought to the result's shape if that is another.

    Args:
        channels_in: of the block's input.
        channels_out: of its result.
        stride: of the block.
        kind: "A" subsamples and pads, "B" is a 1x1 convolution and batch norm, "none" adds nothing, whatever the shape.
    """
    if kind == "none":
        return None
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    if kind == "A":
        return SubsampleAndPad(channels_in, channels_out, stride)
    return conv_norm(channels_in, channels_out, 1, stride)


class BasicBlock(nn.Module):
    """conv3-BN-ReLU-conv3-BN, plus the shortcut, then ReLU."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut_of(channels_in, width, stride, shortcut)

    def preact(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        y: Tensor = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return y if self.shortcut is None else y + self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.relu(self.preact(x))


def cifar_resnet(depth: int, stem: int, widths: tuple[int, int, int], shortcut: str, num_classes: int) -> Network:
    """Build one network.

    Args:
        depth: 6n + 2, with n blocks a stage.
        stem: channels of the first convolution.
        widths: channels of the three stages.
        shortcut: "A" or "B", where the shape changes.
        num_classes: K.

    Raises:
        RecipeError: the depth is not 6n + 2, or shortcut A would have to narrow.
    """
    if depth < 8 or (depth - 2) % 6:
        raise RecipeError(f"a CIFAR ResNet has depth 6n + 2 (8, 14, 20, ...), not {depth}")
    if shortcut == "A" and not stem <= widths[0] <= widths[1] <= widths[2]:
        raise RecipeError(f"shortcut A pads channels and cannot narrow: stem {stem}, stages {widths}")
    blocks = (depth - 2) // 6
    first = conv_norm(3, stem, 3).append(nn.ReLU())
    stages = []
    channels = stem
    for width, stride in zip(widths, STRIDES, strict=True):
        body = [BasicBlock(channels, width, stride, shortcut)]
        body += [BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)]
        stages.append(Stage(*body))
        channels = width
    return initialise(Network(first, stages, channels, num_classes))


def _scaled(factor: float) -> tuple[int, int, int]:
    first, second, third = (max(1, round(width * factor)) for width in WIDTHS)
    return first, second, third


@family(
    r"resnet(\d+)(?:_(\d+(?:\.\d+)?))?_([ab])",
    *("resnet20_a", "resnet8_a", "resnet14_a", "resnet110_a", "resnet20_b", "resnet110_b", "resnet20_0.75_a"),
)
def lettered(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """resnet<depth>[_<width factor>]_<a|b>."""
    widths = _scaled(float(name[2] or 1))
    return cifar_resnet(int(name[1]), widths[0], widths, name[3].upper(), num_classes)


@family(r"resnet(\d+)(?:x(\d+))?", "resnet8x4", "resnet32x4", "resnet110x2", "resnet110x4", "resnet116")
def multiplied(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """resnet<depth>[x<factor>], shortcut B."""
    factor = int(name[2] or 1)
    return cifar_resnet(int(name[1]), _wide_stem(factor), _scaled(factor), "B", num_classes)


@family(
    r"wrn(\d+)_(\d+)_simkd",
    *("wrn40_2_simkd", "wrn40_1_simkd", "wrn40_4_simkd", "wrn16_2_simkd", "wrn16_4_simkd"),
)
def post_activation_wide(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """wrn<depth + 2>_<factor>_simkd, shortcut B."""
    factor = int(name[2])
    return cifar_resnet(int(name[1]) - 2, _wide_stem(factor), _scaled(factor), "B", num_classes)


def _wide_stem(factor: int) -> int:
    return 32 if factor >= 4 else 16
