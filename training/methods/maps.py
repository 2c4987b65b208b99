"""Arithmetic on feature maps that several methods share.

Everything here is deterministic on a GPU too, which torch's own adaptive pooling is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.device import sent

EPSILON = 1e-12


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Divide by the Euclidean norm along `dim`: `x / max(|x|, 1e-12)`, the shape unchanged.

    A vector of zeros stays one, and gets no gradient: dividing its gradient by 1e-12 too, as the formula would have it,
    ends a run at the first dead channel.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    alive = norm > EPSILON
    return torch.where(alive, x / torch.where(alive, norm, 1.0), (x / EPSILON).detach())


def pool_match(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) and (B, C', H', W') to the size of the smaller."""
    height, width = (min(pair) for pair in zip(one.shape[2:], other.shape[2:], strict=True))
    return pooled(one, height, width), pooled(other, height, width)


def pooled(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling, (B, C, H, W) -> (B, C, height, width): cell i averages floor(iH/h)..ceil((i+1)H/h)."""
    if x.shape[2:] == (height, width):
        return x
    sizes = zip(x.shape[2:], (height, width), strict=True)
    rows, columns = (sent(_cells(size, wanted).to(x.dtype), x.device) for size, wanted in sizes)
    return rows @ x @ columns.T


def _cells(size: int, wanted: int) -> Tensor:
    """(wanted, size) weights: row i averages the pixels of cell i."""
    cell, pixel = torch.arange(wanted)[:, None], torch.arange(size)[None]
    first, end = cell * size // wanted, -(-(cell + 1) * size // wanted)
    inside = ((pixel >= first) & (pixel < end)).float()
    return inside / inside.sum(1, keepdim=True)
