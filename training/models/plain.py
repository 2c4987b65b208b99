"""Plain networks, which have no shortcuts or only those that change the shape, and the ResNets that teach them.

Source: "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts" (JointRD), 2020. A block begins
with its ReLU and ends without one, and one more ReLU comes before the pool: the same function as a ResNet with the ReLU
after each addition, but the maps that are compared and handed over after a stage are those before the ReLU.

Names:
    jointrd_resnet18_cifar             every shortcut, CIFAR or ImageNet stem
    jointrd_plain_keepds18_cifar       only the projections that begin stages 2 to 4
    jointrd_plain_none50_imagenet      none; the first block's own stride makes the map smaller
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from training.models.contract import Network, Stage, initialise
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


@family(
    r"jointrd_(resnet|plain_keepds|plain_none)(18|34|50)_(cifar|imagenet)",
    *(
        f"jointrd_{shortcuts}{depth}_{kind}"
        for shortcuts in ("plain_keepds", "plain_none", "resnet")
        for depth in (18, 34, 50)
        for kind in ("cifar", "imagenet")
    ),
)
def jointrd(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """jointrd_<shortcuts><depth>_<stem>."""
    kind, counts = BLOCKS[int(name[2])]
    stages = []
    channels = STEM
    for number, (width, count, stride) in enumerate(zip(WIDTHS, counts, STRIDES, strict=True)):
        blocks = []
        for place in range(count):
            shortcut = "B" if keeps(name[1], number, place) else "none"
            blocks.append(ReluFirst(kind(channels, width, stride if place == 0 else 1, shortcut)))
            channels = kind.expansion * width
        stages.append(Stage(*blocks))
    return initialise(Network(stem(name[3]), stages, channels, num_classes, head=nn.ReLU()))
