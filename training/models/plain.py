"""Plain networks, which have no shortcuts or only those that change the shape, and the ResNets that teach them.

Source: "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts" (JointRD), 2020. A block begins
with its ReLU and ends without one, and one more ReLU comes before the pool: the same function as a ResNet with the ReLU
after each addition, but the maps that are compared and handed over after a stage are those before the ReLU.

Names:
    jointrd_resnet18_cifar               every shortcut, CIFAR or ImageNet stem
    jointrd_plain_keepds18_cifar         only the projections that begin stages 2 to 4
    jointrd_plain_none50_imagenet        none; the first block's own stride makes the map smaller
    jointrd_plain_none18_0.25_cifar      every width, the stem's too, times 0.25
    jointrd_plain_keepds18_cifar_dirac   with Dirac convolutions, which the teachers never have
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from training.models.contract import Network, Stage, initialise
from training.models.dirac import DiracConv2d
from training.models.families import family
from training.models.resnet import BasicBlock
from training.models.resnet_imagenet import BLOCKS, STEM, STRIDES, WIDTHS, Bottleneck, stem


class ReluFirst(nn.Module):
    """ReLU, then a residual block without its last ReLU."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.block.preact(torch.relu(x))


def keeps(shortcuts: str, stage: int, block: int) -> bool:
    """Whether a block has its shortcut; stages and blocks count from 0."""
    return {"resnet": True, "plain_keepds": stage > 0 and block == 0, "plain_none": False}[shortcuts]


def has_dirac(place: str, stem_kind: str) -> bool:
    """Whether a convolution of a Dirac network is one.

    Args:
        place: its name in its block.
        stem_kind: `cifar`: all 3x3 and the bottleneck's expanding 1x1; `imagenet`: the projections and every 1x1 too.
    """
    return stem_kind == "imagenet" or not place.startswith(("reduce", "shortcut"))


KINDS = ("plain_keepds", "plain_none", "resnet")
SIZES = r"(18|34|50)(?:_(\d+(?:\.\d+)?))?_(cifar|imagenet)"


def names(kinds: tuple[str, ...], suffix: str = "") -> list[str]:
    """Those of the papers."""
    return [
        f"jointrd_{kind}{depth}_{stem_kind}{suffix}"
        for kind in kinds
        for depth in (18, 34, 50)
        for stem_kind in ("cifar", "imagenet")
    ]


@family(f"jointrd_(resnet|plain_keepds|plain_none){SIZES}", *names(KINDS))
def jointrd(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """jointrd_<shortcuts><depth>[_<width factor>]_<stem>."""
    return plain(name[1], int(name[2]), float(name[3] or 1), name[4], num_classes)


@family(f"jointrd_(plain_keepds|plain_none){SIZES}_dirac", *names(KINDS[:2], "_dirac"))
def jointrd_dirac(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """jointrd_<shortcuts><depth>[_<width factor>]_<stem>_dirac."""
    net = plain(name[1], int(name[2]), float(name[3] or 1), name[4], num_classes)
    for block in (module.block for module in net.modules() if isinstance(module, ReluFirst)):
        for place, module in list(block.named_modules()):
            if isinstance(module, nn.Conv2d) and has_dirac(place, name[4]):
                block.set_submodule(place, DiracConv2d(module))
    return net


def plain(shortcuts: str, depth: int, factor: float, stem_kind: str, num_classes: int) -> Network:
    """Build one network; `factor` multiplies its widths."""
    kind, counts = BLOCKS[depth]
    first, *widths = (max(1, round(width * factor)) for width in (STEM, *WIDTHS))
    stages = []
    channels = first
    for number, (width, count, stride) in enumerate(zip(widths, counts, STRIDES, strict=True)):
        blocks = []
        for place in range(count):
            shortcut = "B" if keeps(shortcuts, number, place) else "none"
            blocks.append(ReluFirst(kind(channels, width, stride if place == 0 else 1, shortcut)))
            channels = kind.expansion * width
        stages.append(Stage(*blocks))
    return initialise(Network(stem(stem_kind, first), stages, channels, num_classes, head=nn.ReLU()))
