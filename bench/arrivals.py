"""Open-loop schedules: when each request is meant to be sent, decided before the first one goes out.

Both kinds start with a gap, so that n arrivals at rate R span n/R seconds (on average, for Poisson). Poisson gaps come
from one generator in order: a longer schedule of the same rate and seed begins with the shorter one.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Arrivals = Literal["constant", "poisson"]
Offsets = NDArray[np.float64]


def by_count(kind: Arrivals, rate: float, count: int, seed: int = 0) -> Offsets:
    """The first `count` arrivals.

    Args:
        kind: equal gaps, or exponential ones.
        rate: mean arrivals a second.
        count: how many.
        seed: of the exponential gaps.

    Returns:
        (count,) seconds after the start, ascending.
    """
    if kind == "constant":
        return np.arange(1, count + 1) / rate
    return _running_sum(np.random.default_rng(seed), 0.0, count) / rate


def by_duration(kind: Arrivals, rate: float, duration_s: float, seed: int = 0) -> Offsets:
    """All arrivals up to `duration_s`.

    Args:
        kind: equal gaps, or exponential ones.
        rate: mean arrivals a second.
        duration_s: the last moment at which a request may be sent, seconds after the start.
        seed: of the exponential gaps.

    Returns:
        (n,) seconds after the start, ascending, none after `duration_s`; n may be 0.
    """
    expected = rate * duration_s
    if kind == "constant":
        offsets = by_count(kind, rate, math.ceil(expected))
        return offsets[offsets <= duration_s]
    generator = np.random.default_rng(seed)
    chunk = math.ceil(expected) + 1
    sums = _running_sum(generator, 0.0, chunk)
    while sums[-1] / rate <= duration_s:
        sums = np.concatenate([sums, _running_sum(generator, float(sums[-1]), chunk)])
    offsets = sums / rate
    return offsets[offsets <= duration_s]


def _running_sum(generator: np.random.Generator, begin: float, count: int) -> Offsets:
    """Sums of `count` exponential gaps of mean 1, from `begin`; added in order, so that chunks join without a seam."""
    gaps = generator.standard_exponential(count)
    return np.cumsum(np.concatenate([[begin], gaps]))[1:]
