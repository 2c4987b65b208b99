"""Two views of an image, for a loss that has to reach the image through them: all of it, and a part.

A view is a matrix product, rows times image times columns, so that its gradient is one too, and the same every time on
a GPU as well, which that of torch's own resampling is not.

Source: Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", 2021, arXiv 2105.08584, with
the ranges of its code: an ordinary crop, and a resized one of a quarter to all of the area, sides 3:4 to 4:3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.crops import RATIO, inside, mirror
from training.device import sent
from training.settings import Augment

AREA = 0.25, 1.0


def whole_view(images: Tensor, augment: Augment) -> Tensor:
    """A crop of the image with black around it, mirrored perhaps, as training images are: (B, 3, S, S) -> the same."""
    count, side = len(images), images.shape[-1]
    offsets = torch.randint(-augment.pad, augment.pad + 1, (2, count)).float()
    mirrored = torch.randint(2, (count,)).bool() & augment.flip
    steps = torch.arange(side).float()
    rows, columns = offsets[0][:, None] + steps, offsets[1][:, None] + steps
    return view(images, taps(rows, side), taps(mirror(columns, mirrored), side))


def part_view(images: Tensor, augment: Augment) -> Tensor:
    """A part of the image, as large as the whole by bilinear resampling, mirrored perhaps: (B, 3, S, S) -> the same."""
    count, side = len(images), images.shape[-1]
    area = torch.empty(count).uniform_(*AREA) * side**2
    ratio = torch.empty(count).uniform_(math.log(RATIO[0]), math.log(RATIO[1])).exp()
    height, width = (area / ratio).sqrt().clamp(max=side), (area * ratio).sqrt().clamp(max=side)
    top, left = torch.rand(count) * (side - height), torch.rand(count) * (side - width)
    mirrored = torch.randint(2, (count,)).bool() & augment.flip
    rows, columns = inside(top, height, side), inside(left, width, side)
    return view(images, taps(rows, side), taps(mirror(columns, mirrored), side))


def taps(places: Tensor, side: int) -> Tensor:
    """What each pixel gives to a place: (B, side) -> (B, side, side), linear in between, nothing off the image."""
    return (1 - (places[:, :, None] - torch.arange(side)).abs()).clamp_min(0)


def view(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, 3, S, S) seen through (B, S, S) rows and columns."""
    rows, columns = (sent(x, images.device)[:, None] for x in (rows, columns))
    return rows @ images @ columns.transpose(2, 3)
