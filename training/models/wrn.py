"""Wide residual networks with pre-activation: BN and ReLU come before each convolution.

Source: Zagoruyko, Komodakis, "Wide Residual Networks", 2016, table 1, as "Contrastive Representation Distillation",
2020, compares them. A stage's map is the raw sum of its last block. What is compared before a ReLU is that sum after
the batch norm that comes next, be it the next stage's first or the network's last.

Names:
    wrn_40_2_preact             depth 6n + 4, with n blocks a stage; widths 16, 32, 64 times the second number
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.models.contract import Network, Stage, initialise
from training.models.families import family
from training.models.resnet import STRIDES, WIDTHS

STEM = 16


class PreActivated(nn.Module):
    """BN-ReLU-conv3-BN-ReLU-conv3, plus the shortcut, which starts after the first ReLU where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.projection = (
            None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        active = torch.relu(self.bn1(x))
        total: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return total + (x if self.projection is None else self.projection(active))


class WideResNet(Network):
    """A network whose maps meet batch norm and ReLU only after the stage they end."""

    def before_relu(self, number: int, x: Tensor) -> Tensor:
        """After the next batch norm, whose running statistics are left to the forward pass itself."""
        following = [part.blocks[0].bn1 for part in self.stages[number + 1 :]]  # type: ignore[index, union-attr]
        norm = following[0] if following else self.head[0]  # type: ignore[index]
        assert isinstance(norm, nn.BatchNorm2d), "so they are built"
        statistics = (None, None) if norm.training else (norm.running_mean, norm.running_var)
        return functional.batch_norm(x, *statistics, norm.weight, norm.bias, norm.training, eps=norm.eps)


@family(r"wrn_(\d+)_(\d+)_preact", "wrn_40_2_preact", "wrn_40_1_preact", "wrn_16_2_preact")
def pre_activation_wide(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """wrn_<depth>_<factor>_preact.

    Raises:
        RecipeError: the depth is not 6n + 4.
    """
    depth, factor = int(name[1]), int(name[2])
    if depth < 10 or (depth - 4) % 6 or not factor:
        raise RecipeError(f"a wide ResNet has depth 6n + 4 (16, 22, 28, ...) and a factor of 1 or more, not {name[0]}")
    stages = []
    channels = STEM
    for base, stride in zip(WIDTHS, STRIDES, strict=True):
        width = factor * base
        blocks = [PreActivated(channels, width, stride)]
        blocks += [PreActivated(width, width, 1) for _ in range((depth - 4) // 6 - 1)]
        stages.append(Stage(*blocks))
        channels = width
    last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    return initialise(WideResNet(nn.Conv2d(3, STEM, 3, 1, 1, bias=False), stages, channels, num_classes, head=last))
