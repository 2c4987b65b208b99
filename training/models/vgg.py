"""VGG: five blocks of 3x3 convolutions with batch norm, a max-pool between them.

Source: Simonyan, Zisserman, "Very Deep Convolutional Networks", 2015, table 1. A bar in a plan is a 2x2 max-pool.

Names:
    vgg8, vgg13                 of "Contrastive Representation Distillation", 2020: the last map is 4x4
    vgg19_prd, vgg19_st36_prd   of "Prune Your Model Before Distill It", 2022: STn is what pruning n % left, CL is
                                narrower by hand, DBL is wider
    vgg_8-8_16-16_prd           the same with the widths in the name: a bar is a pool, so `_` begins a block
    vgg11_fc4096, vgg16_tiny    a fifth pool and two hidden layers: a fixed size of images
"""

from __future__ import annotations

import re

from torch import nn

from cascade.errors import RecipeError
from training.models.blocks import Activated, conv_norm
from training.models.contract import Network, Stage, initialise
from training.models.families import family, one_of

CRD = {
    "vgg8": "64 | 128 | 256 | 512 | 512",
    "vgg13": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
}
PRD = {
    "vgg19_prd": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
    "vgg11_prd": "64 | 128 | 256 256 | 512 512 | 512 512",
    "vgg19_cl1_prd": "64 64 | 64 64 | 128 128 128 128 | 256 256 256 256 | 512 512 512 512",
    "vgg19_cl2_prd": "64 39 | 179 79 | 354 155 362 146 | 614 247 500 158 | 271 139 547 512",
    "vgg19_st36_prd": "53 61 | 128 121 | 258 241 258 236 | 485 410 406 374 | 340 358 390 399",
    "vgg19_st59_prd": "44 56 | 116 112 | 238 227 240 209 | 408 348 339 246 | 196 214 367 272",
    "vgg19_st79_prd": "40 49 | 111 97 | 225 187 224 170 | 356 233 220 99 | 111 84 297 122",
    "vgg19dbl_prd": "64 128 | 256 256 | 512 512 512 512 | 1024 1024 1024 1024 | 1024 1024 1024 512",
    "vgg19dbl_st36_prd": "51 118 | 265 235 | 525 468 525 452 | 941 775 859 731 | 754 713 738 443",
    "vgg19dbl_st59_prd": "40 111 | 244 218 | 472 445 473 406 | 833 674 637 542 | 381 469 681 350",
    "vgg19dbl_st79_prd": "39 99 | 243 194 | 472 387 468 340 | 726 402 356 239 | 205 194 461 238",
}
HIDDEN = {
    "vgg11_fc4096": ("64 | 128 | 256 256 | 512 512 | 512 512", 4096),
    "vgg19_fc4096": ("64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512", 4096),
    "vgg16_tiny": ("64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512", 1024),
}


def convolutions(plan: str, *, last_pool: bool = True) -> tuple[nn.Module, list[Stage], int]:
    """Stem, stages and last number of channels of a plan: the first block, and one stage a further block.

    Args:
        plan: channels, with a bar for every pool.
        last_pool: pool before the last block too.
    """
    blocks = [[int(width) for width in block.split()] for block in plan.split("|")]
    channels = 3
    stages = []
    for number, widths in enumerate(blocks):
        layers: list[nn.Module] = []
        if number > 0 and (last_pool or number < len(blocks) - 1):
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            layers.append(Activated(conv_norm(channels, width, 3, bias=True)))
            channels = width
        stages.append(Stage(*layers))
    return stages[0], stages[1:], channels


AVERAGED = rf"{one_of(PRD)}|vgg_([1-9]\d*(?:[-_][1-9]\d*)*)_prd"


@family(AVERAGED, *PRD)
def pruned_plans(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """A pool before each block but the first, an average over what is left, one linear layer."""
    plan = PRD[name[0]] if name[1] is None else name[1].replace("-", " ").replace("_", " | ")
    return initialise(Network(*convolutions(plan), num_classes))


@family(one_of(CRD), *CRD)
def late_maps(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """The same with a last map of 4x4 for images of 32 and of 64 pixels."""
    return initialise(Network(*convolutions(CRD[name[0]], last_pool=size >= 64), num_classes))


@family(one_of(HIDDEN), *HIDDEN)
def with_hidden_layers(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """Five pools, two hidden layers with dropout, one linear layer.

    Raises:
        RecipeError: five pools leave nothing of the image.
    """
    if size < 32:
        raise RecipeError(f"{name[0]} halves an image five times, and one of {size} pixels is too small: 32 or more")
    plan, width = HIDDEN[name[0]]
    stem, stages, channels = convolutions(plan)
    layers: list[nn.Module] = [nn.MaxPool2d(2), nn.Flatten()]
    for inputs in (channels * (size // 32) ** 2, width):
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.5)]
    return initialise(Network(stem, stages, channels, num_classes, pool=nn.Sequential(*layers), width=width))
