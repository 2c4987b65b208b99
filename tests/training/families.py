"""One small network of every kind that differs in its parts, with the maps it has to give."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training import models
from training.models import Network

CLASSES = 5
ALL = (1, 2, 3, 4)


@dataclass(frozen=True)
class Kind:
    """What a network is expected to look like.

    Attributes:
        name: of the network.
        maps: channels and pixels a side of stem and stages.
        pre_pool: the same of the map that is pooled.
        width: of the vector that the classifier reads.
        raw: stages, from 1, that end without a ReLU, so that their maps are those before it.
        size: of the images.
    """

    name: str
    maps: tuple[tuple[int, int], ...]
    pre_pool: tuple[int, int]
    width: int
    raw: tuple[int, ...] = ()
    size: int = 32


KINDS = [
    Kind("resnet8_0.25_a", ((4, 32), (4, 32), (8, 16), (16, 8)), (16, 8), 16),
    Kind("resnet14_0.25_b", ((4, 32), (4, 32), (8, 16), (16, 8)), (16, 8), 16),
    Kind("resnet18_st79_tiny_cifarstem", ((64, 16), (49, 16), (85, 8), (140, 4), (198, 2)), (198, 2), 198, size=16),
    Kind("resnet50_st79_tiny_imagenetstem", ((64, 8), (144, 8), (240, 4), (440, 2), (984, 1)), (984, 1), 984, size=32),
    Kind("jointrd_plain_keepds18_cifar", ((64, 8), (64, 8), (128, 4), (256, 2), (512, 1)), (512, 1), 512, ALL, 8),
    Kind("jointrd_plain_none18_cifar", ((64, 8), (64, 8), (128, 4), (256, 2), (512, 1)), (512, 1), 512, ALL, 8),
    Kind("wrn_10_1_preact", ((16, 32), (16, 32), (32, 16), (64, 8)), (64, 8), 64),
    Kind("vgg8", ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4)), (512, 4), 512),
    Kind("vgg19_st79_prd", ((49, 16), (97, 8), (170, 4), (99, 2), (122, 1)), (122, 1), 122, size=16),
    Kind("vgg16_tiny", ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2)), (512, 2), 1024),
    Kind("mobilenetv2_half", ((16, 16), (12, 16), (16, 8), (48, 4), (160, 2)), (1280, 2), 1280, ALL),
    Kind("mobilenetv2_cifar", ((32, 34), (24, 17), (32, 9), (96, 5), (320, 5)), (1280, 5), 1280, ALL),
    Kind("mobilenetv2_tiny", ((32, 16), (24, 8), (32, 4), (96, 2), (320, 1)), (1280, 1), 1280, ALL),
    Kind("shufflenetv1", ((24, 32), (240, 16), (480, 8), (960, 4)), (960, 4), 960),
    Kind("shufflenetv2", ((24, 32), (116, 16), (232, 8), (464, 4)), (1024, 4), 1024),
    Kind("shufflenetv2_cifar", ((24, 32), (116, 16), (232, 8), (464, 4)), (1024, 4), 1024),
    Kind("xception_cifar", ((64, 16), (128, 8), (728, 4), (2048, 2)), (2048, 2), 2048, (1, 2), 16),
    Kind("inceptionv3_cifar", ((192, 14), (288, 14), (768, 6), (2048, 2)), (2048, 2), 2048, size=16),
    Kind(
        "torchvision:shufflenet_v2_x0_5",
        ((24, 16), (24, 8), (48, 4), (96, 2), (1024, 1)),
        (1024, 1),
        1024,
        (1, 2, 3),
    ),
    Kind(
        "torchvision:mobilenet_v2",
        ((16, 16), (24, 8), (32, 4), (96, 2), (1280, 1)),
        (1280, 1),
        1280,
        ALL,
    ),
]


@functools.cache
def network(kind: Kind) -> Network:
    """The network with batch norms that have seen something, in eval mode; tests leave it as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.build(kind.name, CLASSES, kind.size)
        assert isinstance(net, Network)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                    nn.init.uniform_(module.running_mean, -0.5, 0.5)
                    nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def images(kind: Kind, count: int = 3) -> Tensor:
    """Random ones of the size it is for."""
    return torch.randn(count, 3, kind.size, kind.size, generator=torch.Generator().manual_seed(1))
