"""Xception: residual blocks of depthwise separable convolutions.

Source: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017, figure 5, brought to 32 x 32
pixels as in "ResKD", 2020, table VII: the entry convolutions have stride 1, and so has the block of 728 channels.
"""

from __future__ import annotations

import itertools
import re

from torch import Tensor, nn

from training.models.blocks import Activated, conv_norm
from training.models.contract import Network, Stage, initialise
from training.models.families import family

MIDDLE_BLOCKS = 8


def separable(channels_in: int, channels_out: int) -> nn.Sequential:
    """Depthwise 3x3, 1x1, BN."""
    depthwise = nn.Conv2d(channels_in, channels_in, 3, 1, 1, groups=channels_in, bias=False)
    return nn.Sequential(depthwise, *conv_norm(channels_in, channels_out, 1))


class Block(nn.Module):
    """ReLU and separable convolution, again and again, perhaps a max-pool; plus the shortcut.

    Args:
        widths: channels of the input, then of each convolution's result.
        stride: of the max-pool and the shortcut's convolution; None for a block without either, which keeps its shape.
        relu_first: begin with a ReLU, as all blocks but the first do.
    """

    def __init__(self, widths: tuple[int, ...], stride: int | None, *, relu_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels_out in itertools.pairwise(widths):
            layers += [nn.ReLU(), separable(channels_in, channels_out)]
        self.body = nn.Sequential(*(layers if relu_first else layers[1:]))
        self.shortcut: nn.Module = nn.Identity()
        if stride is not None:
            self.body.append(nn.MaxPool2d(3, stride, 1))
            self.shortcut = conv_norm(widths[0], widths[-1], 1, stride, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


@family("xception_cifar", "xception_cifar")
def xception(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """The one network: one stage a size of the maps."""
    stem = nn.Sequential(Activated(conv_norm(3, 32, 3)), Activated(conv_norm(32, 64, 3)))
    middle = (Block((728, 728, 728, 728), None) for _ in range(MIDDLE_BLOCKS))
    stages = [
        Stage(Block((64, 128, 128), 2, relu_first=False)),
        Stage(Block((128, 256, 256), 2), Block((256, 728, 728), 1), *middle),
        Stage(Block((728, 728, 1024), 2), Activated(separable(1024, 1536)), Activated(separable(1536, 2048))),
    ]
    return initialise(Network(stem, stages, 2048, num_classes))
