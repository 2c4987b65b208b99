"""Random crops of a batch of images: shifted over black, or of any place and size and brought to the network's.

What is drawn is drawn on the CPU, so that it is the same wherever the images are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.device import sent

RATIO = 3 / 4, 4 / 3
TRIES = 10


def crop_flip(pixels: Tensor, offsets: Tensor, mirrored: Tensor, side: int) -> Tensor:
    """Shift each image by its offsets, black where it runs out, then mirror some; one gather for the batch.

    Args:
        pixels: (B, side, side, 3) uint8.
        offsets: (2, B) int64, down and right; negative is up and left.
        mirrored: (B,) bool, left-right.
        side: pixels.
    """
    steps = torch.arange(side, device=pixels.device)
    rows = offsets[0][:, None] + steps
    columns = offsets[1][:, None] + torch.where(mirrored[:, None], side - 1 - steps, steps)
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    samples = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = pixels[samples, rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None, :]]
    return moved * inside[..., None]


def draw_boxes(count: int, side: int, area: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw a part of each of `count` square pictures: a share of its area, sides 3:4 to 4:3, anywhere in it.

    Shares are uniform, the ratio of the sides is uniform in its logarithm. Of ten draws a picture takes the first that
    fits, and the whole picture if none does.

    Args:
        count: of pictures.
        side: of a picture, pixels.
        area: the smallest and the largest share, in (0, 1].
        generator: on the CPU.

    Returns:
        (4, count) int64: top, left, height, width in pixels.

    Source: Szegedy et al., "Going Deeper with Convolutions", 2015, section 6; the ten draws are torchvision's.
    """
    drawn = torch.rand(2, TRIES, count, generator=generator)
    share = area[0] + (area[1] - area[0]) * drawn[0]
    low, high = map(math.log, RATIO)
    ratio = (low + (high - low) * drawn[1]).exp()
    lengths = (torch.stack([share / ratio, share * ratio]).sqrt() * side).round().clamp_min(1).long()
    fits = (lengths <= side).all(0)
    first = lengths.gather(1, fits.int().argmax(0).expand(2, 1, count))[:, 0]
    lengths = torch.where(fits.any(0), first, side)
    starts = (torch.rand(2, count, generator=generator) * (side - lengths + 1)).long()
    return torch.cat([starts, lengths])


def resized_crop(pictures: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Bring a part of each picture to one size, bilinearly, and mirror some; nothing beside a part shows in it.

    A part that is larger than `size` is not smoothed first, as a server's resizing is.

    Args:
        pictures: (B, L, L, 3) uint8.
        boxes: (4, B) on the CPU: top, left, height, width, pixels.
        mirrored: (B,) bool on the CPU, left-right.
        size: pixels a side.

    Returns:
        (B, size, size, 3) float32 in [0, 255], where the pictures are; not rounded.
    """
    top, left, height, width = boxes.float()
    rows, columns = inside(top, height, size), mirror(inside(left, width, size), mirrored)
    rows, columns = (sent(places, pictures.device) for places in (rows, columns))
    places = torch.stack([columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], -1)
    grid = (2 * places + 1) / pictures.shape[1] - 1
    planes = pictures.permute(0, 3, 1, 2).contiguous().float()
    parts = functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return parts.permute(0, 2, 3, 1).contiguous()


def inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where each of `size` pixels of a part, (B,) each, lies in the image: (B, size), never off its outermost ones."""
    centres = (torch.arange(size) + 0.5) / size
    places = start[:, None] + centres * length[:, None] - 0.5
    return torch.minimum(torch.maximum(places, start[:, None]), (start + length - 1)[:, None])


def mirror(places: Tensor, mirrored: Tensor) -> Tensor:
    """Turn round the rows of (B, size) that are to be mirrored."""
    return torch.where(mirrored[:, None], places.flip(1), places)
