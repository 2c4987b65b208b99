"""The numbers behind the drawings: accuracy against cost, energies of right and wrong answers, calibration of scores.

Source of the calibration error: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (2017), Eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.exits import Floats, Scores, Threshold, softmax
from cascade.figures import running_sums
from cascade.trace import Trace

BINS = 15
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Reliability:
    """How sure, and how often right, in bins of equal width over [0, 1].

    Attributes:
        sure: (B,) mean largest softmax in each bin; NaN where the bin is empty.
        right: (B,) share of right answers in each bin; NaN where it is empty.
        samples: (B,) how many are in it.
        error: the expected calibration error, the mean of |right - sure| over samples.
    """

    sure: Scores
    right: Scores
    samples: Labels
    error: float


def point(traced: Trace, truth: Labels, costs: Sequence[float], threshold: Threshold) -> tuple[float, float]:
    """Mean cost, in the unit of `costs`, and share of right answers at one threshold or one a stage."""
    leaving = traced.leaving(threshold)
    spent = float(np.cumsum(np.asarray(costs, np.float64))[leaving].mean())
    return spent, float((traced.answers(leaving) == truth).mean())


def against_cost(traced: Trace, truth: Labels, costs: Sequence[float], path: Scores) -> tuple[Scores, Scores]:
    """Mean cost and accuracy at every point of a path of thresholds: (P,) each."""
    found = np.array([point(traced, truth, costs, tuple(row.tolist())) for row in path])
    return found[:, 0], found[:, 1]


def reliability(logits: Floats, truth: Labels) -> Reliability:
    """Compare the largest softmax with how often it is right.

    Args:
        logits: (N, K).
        truth: (N,).
    """
    shares = softmax(logits).astype(np.float64)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == truth
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    samples = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, sure, BINS) / samples
        hits = np.bincount(bins, right, BINS) / samples
    error = float(np.nansum(np.abs(hits - means) * samples) / len(truth))
    return Reliability(means, hits, samples, error)


def reliabilities(stage_logits: Sequence[Floats], truth: Labels) -> list[Reliability]:
    """The same for S_0, S_1, ..."""
    return [reliability(logits, truth) for logits in running_sums(stage_logits)]
