"""Images side by side, as a PNG that somebody can look at."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

GAP = 1
SIDE = 64  # pixels that an image has at least on a sheet, as far as a whole factor goes


def contact_sheet(images: Tensor) -> bytes:
    """A PNG of images in rows, as near to a square as they come, white where there is none.

    Small images are enlarged, each pixel to a square.

    Args:
        images: (N, 3, S, S) float in [0, 1], at least one.
    """
    count, _, side, _ = images.shape
    scale = max(1, SIDE // side)
    side *= scale
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cell = side + GAP
    sheet = torch.full((rows * cell - GAP, columns * cell - GAP, 3), 255, dtype=torch.uint8)
    pixels = (images.detach().float().cpu() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    for place, image in enumerate(pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)):
        top, left = place // columns * cell, place % columns * cell
        sheet[top : top + side, left : left + side] = image
    file = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(file, "PNG")
    return file.getvalue()
