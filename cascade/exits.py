"""Scores and thresholds: from logits to which samples stop here.

The score is the energy of a prediction, the squared norm of its softmax: 1/K where every class is alike, 1 where one
class has everything. A sample stops only where its energy exceeds the threshold. The test is written as
`energy > threshold` and never as its opposite, so that equality goes on, and NaN, which compares false, goes on too.

Both softmax and energy are computed in float64 and rounded to float32. In float32 their last bits would be those of one
library's exponential and one order of summation; rounded from float64 they are the same on every processor and in an
ONNX graph, so that a sample leaves at the same stage wherever its cascade is run.

Source: ResKD, Eq. 8-11 and Algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BadShape

Floats = NDArray[np.float32]
Scores = NDArray[np.float64]
Threshold = float | tuple[float, ...]
"""The energy to be exceeded: one for all stages, or one for each stage but the last."""


def softmax(logits: NDArray[Any]) -> Floats:
    """Probabilities, computed in float64 with the largest logit subtracted first, and rounded to float32.

    Args:
        logits: (B, K), not normalised; any float type.

    Returns:
        (B, K) float32.

    Raises:
        BadShape: `logits` is not (B, K) with K of at least one.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise BadShape(f"logits must be (batch, classes), not {logits.shape}")
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite logit gives NaN, which goes on to the next stage
        rows = np.ascontiguousarray(logits, np.float32)  # sums over other memory orders are rounded otherwise
        powers = rows.astype(np.float64)
        powers -= np.maximum.reduce(rows, axis=1, keepdims=True)
        np.exp(powers, powers)
        powers /= np.add.reduce(powers, axis=1, keepdims=True)
        result: Floats = powers.astype(np.float32)
    return result


def energy(logits: NDArray[Any]) -> Scores:
    """The squared norm of the softmax, a sample.

    Args:
        logits: (B, K).

    Returns:
        (B,) float64 in [1/K, 1]: the sum of the squares of the float32 softmax, rounded to float32 and widened again,
        so that the comparison with a threshold is made in float64.

    Source: ResKD, Eq. 8.
    """
    return norm(softmax(logits))


def norm(shares: Floats) -> Scores:
    """The squared norm of probabilities (B, K) that `softmax` gave: (B,) float64, as `energy` gives it for logits."""
    squares = shares.astype(np.float64)
    squares *= squares
    sums = np.add.reduce(squares, axis=1)  # row by row: einsum rounds by what else is there
    result: Scores = sums.astype(np.float32).astype(np.float64)
    return result


def exits(scores: Scores, threshold: float | Scores) -> NDArray[np.bool_]:
    """Say which samples stop at this stage.

    Args:
        scores: (B,) float64 energies.
        threshold: the energy that has to be exceeded; one for all, or (B,) float64, one a sample.

    Returns:
        (B,) bool, True where the sample stops. Equality and NaN go on.

    Source: ResKD, Algorithm 2, with its order of steps put right.
    """
    result: NDArray[np.bool_] = np.asarray(scores, np.float64) > np.asarray(threshold, np.float64)
    return result


def at(threshold: Threshold, stage: int) -> float:
    """The threshold of one stage; the last one has none, and takes that before it."""
    return threshold[min(stage, len(threshold) - 1)] if isinstance(threshold, tuple) else threshold


def per_stage(threshold: Threshold, stages: int) -> tuple[float, ...]:
    """One threshold for each stage but the last.

    Args:
        threshold: one for all stages, or one for each but the last.
        stages: of the cascade.

    Raises:
        BadShape: there are several, and not one for each.
    """
    if not isinstance(threshold, tuple):
        return (threshold,) * (stages - 1)
    if len(threshold) != stages - 1:
        raise BadShape(
            f"{len(threshold)} thresholds for {stages} stages: give one for all, or {stages - 1}, "
            "one for each stage but the last"
        )
    return threshold
