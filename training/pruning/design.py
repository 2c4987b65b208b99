"""A dense student from what pruning left of its teacher: layer by layer, as many weights as that has left.

Source: Park, No, "Prune Your Model Before Distill It", 2022, section 5 and Eq. 9: layer i of a chain has
`c_i = n_i / (kx_i * ky_i * c_{i-1})` outputs, with n_i weights left and the c_{i-1} outputs that the student's layer
before was given. The widths that the paper prints differ from these by up to two; they are networks of their own
(`vgg19_st79_prd`). For residual networks it prints widths and no equation. An addition makes the blocks of a stage
equally wide, so here a stage of the student has as many weights as that of the teacher has left, with projections:

    basic        (18 b - 9) w^2 + (9 + p) d w = N     b blocks, w wide, d outputs of the stage before; p is 1 where
    bottleneck   (17 b - 4) w^2 + 5 d w       = N     the first block has a projection, and outputs are w, or 4 w
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from cascade.errors import RecipeError
from training.models.contract import Network, Stage
from training.models.resnet import BasicBlock
from training.models.resnet_imagenet import STEM, Bottleneck
from training.models.vgg import AVERAGED

RESNET = re.compile(r"resnet(\d+).*_(imagenet|cifar)(?:stem)?")

Left = Mapping[str, tuple[int, int]]


def designed(name: str, teacher: nn.Module, left: Left) -> str:
    """The name of the student that a pruned teacher asks for.

    Args:
        name: of the teacher: a VGG with one linear layer, or an ImageNet ResNet under either stem.
        teacher: that network.
        left: weights left, and weights there were, by the weight's name, as `Masks.counts` gives them.

    Raises:
        RecipeError: the teacher is of another family.
    """
    if re.fullmatch(AVERAGED, name) and isinstance(teacher, Network):
        blocks = [convolutions(block, prefix, left) for prefix, block in _parts(teacher)]
        outputs = iter(chain([layer for block in blocks for layer in block]))
        return "vgg_" + "_".join("-".join(str(next(outputs)) for _ in block) for block in blocks) + "_prd"
    if (match := RESNET.fullmatch(name)) and isinstance(teacher, Network) and len(teacher.stages) == 4:
        counts = [sum(count for _, count in convolutions(stage, pre, left)) for pre, stage in _parts(teacher)[1:]]
        width = bottleneck if _blocks(teacher)[0][0] == Bottleneck.expansion else basic
        widths = stages(counts, [count for _, count in _blocks(teacher)], width)
        return f"resnet{match[1]}_{'-'.join(map(str, widths))}_{match[2]}"
    raise RecipeError(
        f"no student can be designed from {name!r}: that takes a VGG with one linear layer, such as vgg19_prd, or an "
        "ImageNet ResNet, such as resnet18_tiny_imagenetstem; name the student instead"
    )


def chain(layers: Sequence[tuple[int, int]], channels: int = 3) -> list[int]:
    """Outputs of each layer of a chain, none of them under 1. Source: Eq. 9, layer after layer.

    Args:
        layers: kernel's pixels, and weights left, of each layer.
        channels: of the images.
    """
    widths = []
    for pixels, count in layers:
        channels = max(1, round(count / (pixels * channels)))
        widths.append(channels)
    return widths


Width = Callable[[int, int, int, int], tuple[int, int]]


def basic(number: int, count: int, blocks: int, before: int) -> tuple[int, int]:
    """Width and outputs of a stage of basic blocks.

    The first stage has a projection unless it is as wide as the stem, so it is tried without.

    Args:
        number: of the stage, from 0.
        count: weights left.
        blocks: in the stage.
        before: outputs of the stage before.
    """
    if number == 0 and _root(18 * blocks - 9, 9 * before, count) == before:
        return before, before
    width = _root(18 * blocks - 9, 10 * before, count)
    return width, width


def bottleneck(number: int, count: int, blocks: int, before: int) -> tuple[int, int]:
    """Width inside and outputs of a stage of bottleneck blocks, which always has a projection."""
    width = _root(17 * blocks - 4, 5 * before, count)
    return width, Bottleneck.expansion * width


def stages(counts: Sequence[int], blocks: Sequence[int], width: Width) -> list[int]:
    """Widths of the stages of a residual network, under a stem that keeps its channels.

    Args:
        counts: weights left in each stage.
        blocks: in each stage.
        width: `basic` or `bottleneck`.
    """
    before, widths = STEM, []
    for number, (count, depth) in enumerate(zip(counts, blocks, strict=True)):
        inside, before = width(number, count, depth, before)
        widths.append(inside)
    return widths


def convolutions(part: nn.Module, prefix: str, left: Left) -> list[tuple[int, int]]:
    """Kernel's pixels, and weights left, of each convolution of a part."""
    return [
        (math.prod(module.kernel_size), left[f"{prefix}.{name}.weight"][0])
        for name, module in part.named_modules()
        if isinstance(module, nn.Conv2d)
    ]


def _root(square: int, linear: int, count: int) -> int:
    """The positive w of `square * w^2 + linear * w = count`, rounded, at least 1."""
    return max(1, round((math.sqrt(linear**2 + 4 * square * count) - linear) / (2 * square)))


def _parts(net: Network) -> list[tuple[str, nn.Module]]:
    """Stem and stages with the beginnings of their weights' names."""
    return [("stem", net.stem), *((f"stages.{number}", stage) for number, stage in enumerate(net.stages))]


def _blocks(net: Network) -> list[tuple[int, int]]:
    """How much wider a stage's blocks are outside than inside, and how many there are."""
    found = []
    for stage in net.stages:
        assert isinstance(stage, Stage), "so networks are built"
        first = stage.blocks[0]
        assert isinstance(first, BasicBlock | Bottleneck), "the name said so"
        found.append((first.expansion, len(stage.blocks)))
    return found
