"""The convex combination of a few vectors that is shortest, with a bound on each weight.

Source: Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", 2020, Eq. 7: `min_a
1/2 |sum_m a_m v_m|^2` with `sum a = 1` and `0 <= a_m <= C`. The authors hand the Gram matrix to libsvm as a one-class
machine, with an absolute tolerance that small gradients never exceed; the answer does not depend on the vectors' scale,
so here the matrix is divided by its largest entry, and solved.

It is solved where the vectors are, without a number for the CPU to wait for: on every face of the polytope at once, of
which there are up to M 2^M for C above 1/2, and more below. A ridge of 1e-10 on the diagonal makes the answer a single
one, of those that are equally short the most even.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from training.device import sent

RIDGE = 1e-10
TOLERANCE = 1e-9


def weights_of(vectors: Tensor, bound: float, *, normalise: bool = False) -> Tensor:
    """The weights of the shortest combination, (M,); they sum to one and carry no gradient.

    Args:
        vectors: (M, D).
        bound: C, the most that a weight may be; at 1/M or below all weights are 1/M.
        normalise: bring all vectors to length one first, and divide the weights by the lengths after.
    """
    rows = vectors.detach().double()
    lengths = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    if normalise:
        rows = rows / lengths[:, None]
    weights = shortest(rows @ rows.T, bound)
    if normalise:
        weights = weights / lengths
        weights = weights / weights.sum()
    return weights.to(vectors.dtype)


def shortest(gram: Tensor, bound: float) -> Tensor:
    """Solve it for a Gram matrix (M, M) float64: (M,), the best of what each face of the polytope has for a minimum."""
    count = len(gram)
    if bound * count <= 1:
        return torch.full_like(gram[0], 1 / count)
    bound = min(bound, 1.0)
    free, fixed = (sent(x, gram.device) for x in faces(count, bound))
    identity = torch.eye(count, dtype=gram.dtype, device=gram.device)
    largest = gram.abs().max()
    matrix = gram / torch.where(largest > 0, largest, 1.0) + RIDGE * identity
    # Where a is not fixed, the slope `G a` is the same everywhere, and it is what makes the sum one.
    system = torch.where((free[:, :, None] * free[:, None, :]).bool(), matrix, identity)
    even, offset = solved(system, torch.stack([free, -free * (fixed @ matrix)], 2)).unbind(2)
    level = (1 - fixed.sum(1) - offset.sum(1)) / even.sum(1)
    found = fixed + offset + level[:, None] * even
    inside = ((found >= -TOLERANCE) & (found <= bound + TOLERANCE)).all(1)
    squares = ((found @ matrix) * found).sum(1)
    best = torch.where(inside, squares, torch.inf).argmin()
    return found.index_select(0, best[None])[0].clamp(0, bound)


@cache
def faces(count: int, bound: float) -> tuple[Tensor, Tensor]:
    """The faces that hold a point of sum one: which of the weights are free there, and what the others are.

    Faces without a free weight are left out: each is a point of one that has some.

    Returns:
        (F, M) float64, one where a weight is free and zero elsewhere; and (F, M), zero where one is free.
    """
    free, fixed = [], []
    for face in itertools.product((0.0, bound, None), repeat=count):
        values = [value or 0.0 for value in face]
        room = face.count(None)
        if room and 0 <= 1 - sum(values) <= room * bound + TOLERANCE:
            free.append([float(value is None) for value in face])
            fixed.append(values)
    return torch.tensor(free, dtype=torch.float64), torch.tensor(fixed, dtype=torch.float64)


def solved(systems: Tensor, sides: Tensor) -> Tensor:
    """The solutions (F, M, N) of positive definite systems (F, M, M) for right-hand sides (F, M, N).

    By Gauss and Jordan, which need no pivots there; what torch has for it may make the CPU wait for a GPU.
    """
    count = systems.shape[1]
    whole = torch.cat([systems, sides], 2)
    for place in range(count):
        row = whole[:, place] / whole[:, place, place, None]
        whole = whole - whole[:, :, place, None] * row[:, None]
        whole[:, place] = row
    return whole[:, :, count:]
