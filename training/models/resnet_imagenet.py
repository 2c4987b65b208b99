"""ImageNet residual networks: four stages of basic or bottleneck blocks, under an ImageNet or a CIFAR stem.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, table 1, with the stride on the
bottleneck's 3x3 convolution, as torchvision has it; `..._tiny_...`: "Prune Your Model Before Distill It", 2022, whose
students' widths follow what pruning left of their teachers (ST36: 36 % were removed).

Names:
    resnet18_imagenet               7x7 stem of stride 2 and max-pool, which are the stem
    resnet50_cifar                  3x3 stem of stride 1
    resnet18_tiny_imagenetstem      the same two stems, for Tiny-ImageNet's 64 x 64 pixels
    resnet18dbl_st79_tiny_cifarstem
    resnet18_49-85-140-198_cifar    any widths
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor, nn

from training.models.blocks import conv_norm
from training.models.contract import Network, Stage, initialise
from training.models.families import family, one_of
from training.models.resnet import BasicBlock, shortcut_of

STEM = 64
WIDTH = r"[1-9]\d*"
STRIDES = (1, 2, 2, 2)
WIDTHS = (64, 128, 256, 512)
TINY_WIDTHS = {
    "18": WIDTHS,
    "18_st36": (58, 113, 216, 398),
    "18_st59": (54, 102, 184, 305),
    "18_st79": (49, 85, 140, 198),
    "18dbl": (128, 256, 512, 1024),
    "18dbl_st36": (116, 224, 427, 796),
    "18dbl_st59": (104, 192, 353, 618),
    "18dbl_st79": (86, 148, 262, 432),
    "50": WIDTHS,
    "50_st36": (58, 110, 210, 402),
    "50_st59": (48, 90, 164, 330),
    "50_st79": (36, 60, 110, 246),
}


class Bottleneck(nn.Module):
    """conv1-BN-ReLU-conv3-BN-ReLU-conv1-BN, plus the shortcut, then ReLU; four times as wide outside as inside."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.reduce = conv_norm(channels_in, width, 1)
        self.conv = conv_norm(width, width, 3, stride)
        self.expand = conv_norm(width, self.expansion * width, 1)
        self.shortcut = shortcut_of(channels_in, self.expansion * width, stride, shortcut)

    def preact(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        y: Tensor = self.expand(torch.relu(self.conv(torch.relu(self.reduce(x)))))
        return y if self.shortcut is None else y + self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.relu(self.preact(x))


BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def stem(kind: str, width: int = STEM) -> nn.Sequential:
    """`imagenet`: 7x7 of stride 2 and 3x3 max-pool of stride 2. `cifar`: 3x3."""
    if kind == "imagenet":
        return conv_norm(3, width, 7, 2).extend([nn.ReLU(), nn.MaxPool2d(3, 2, 1)])
    return conv_norm(3, width, 3).append(nn.ReLU())


def four_stages(depth: int, widths: tuple[int, ...], stem_kind: str, num_classes: int) -> Network:
    """Build one network; `widths` are those inside a block, one a stage."""
    kind, counts = BLOCKS[depth]
    stages = []
    channels = STEM
    for width, count, stride in zip(widths, counts, STRIDES, strict=True):
        blocks = []
        for block_stride in (stride, *itertools.repeat(1, count - 1)):
            blocks.append(kind(channels, width, block_stride, "B"))
            channels = kind.expansion * width
        stages.append(Stage(*blocks))
    return initialise(Network(stem(stem_kind), stages, channels, num_classes))


@family(
    rf"resnet({one_of(BLOCKS)})_(?:({WIDTH}(?:-{WIDTH}){{3}})_)?(imagenet|cifar)",
    *("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet", "resnet101_imagenet", "resnet50_cifar"),
)
def plain_widths(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """resnet<depth>[_<widths>]_<stem>."""
    widths = WIDTHS if name[2] is None else tuple(map(int, name[2].split("-")))
    return four_stages(int(name[1]), widths, name[3], num_classes)


@family(
    rf"resnet({one_of(TINY_WIDTHS)})_tiny_(imagenet|cifar)stem",
    *(f"resnet{key}_tiny_{kind}stem" for key in TINY_WIDTHS for kind in ("imagenet", "cifar")),
)
def tiny(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """resnet<depth>[dbl][_st<sparsity>]_tiny_<stem>stem."""
    return four_stages(int(name[1][:2]), TINY_WIDTHS[name[1]], name[2], num_classes)
