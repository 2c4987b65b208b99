"""The convex combination of a few vectors that is shortest, with a bound on each weight.

Source: Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", 2020, Eq. 7: `min_a
1/2 |sum_m a_m v_m|^2` with `sum a = 1` and `0 <= a_m <= C`. The authors hand the Gram matrix to libsvm as a one-class
machine, with an absolute tolerance that small gradients never exceed; the answer does not depend on the vectors' scale,
so here the matrix is divided by its largest entry, and solved to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEPS = 10_000
TOLERANCE = 1e-13


def weights_of(vectors: Tensor, bound: float, *, normalise: bool = False) -> list[float]:
    """The weights of the shortest combination; they sum to one.

    Args:
        vectors: (M, D).
        bound: C, the most that a weight may be; at 1/M or below all weights are 1/M.
        normalise: bring all vectors to length one first, and divide the weights by the lengths after.
    """
    rows = vectors.detach().double()
    lengths = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    if normalise:
        rows = rows / lengths[:, None]
    weights = shortest((rows @ rows.T).cpu().numpy(), bound)
    if normalise:
        weights = weights / lengths.cpu().numpy()
        weights = weights / weights.sum()
    return [float(weight) for weight in weights]


def shortest(gram: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Solve it for a Gram matrix (M, M), by moving weight between the two that gain most until none gains.

    Source: Platt, "Sequential Minimal Optimization", 1998, with the most violating pair as in libsvm.
    """
    count = len(gram)
    weights = np.full(count, 1 / count)
    largest = np.abs(gram).max()
    if bound * count <= 1 or largest == 0:
        return weights
    matrix = gram / largest
    bound = min(bound, 1.0)
    for _ in range(STEPS):
        slope = matrix @ weights
        giver = int(np.argmax(np.where(weights > 0, slope, -np.inf)))
        taker = int(np.argmin(np.where(weights < bound, slope, np.inf)))
        gain = slope[giver] - slope[taker]
        if gain <= TOLERANCE:
            break
        curvature = matrix[giver, giver] + matrix[taker, taker] - 2 * matrix[giver, taker]
        room = min(weights[giver], bound - weights[taker])
        move = min(room, gain / curvature) if curvature > 0 else room
        weights[taker] = bound if move == bound - weights[taker] else weights[taker] + move
        weights[giver] = 0.0 if move == weights[giver] else weights[giver] - move
    return weights
