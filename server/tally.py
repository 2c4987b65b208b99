"""Counts that cost next to nothing to make, and reach Prometheus a little later.

prometheus_client takes a few microseconds an observation where several processes share a folder, and a request makes a
dozen; beside a light network that would be a tenth of the work. So observations are added up in plain numbers here and
handed over together, some tens of milliseconds later or when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram


class BatchedHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations.

        Args:
            counts: observations in each bucket, the one without an upper bound last.
            total: their sum.
        """
        for bucket, count in zip(self._buckets, counts, strict=True):  # what `observe` does, but for many
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Count:
    """A counter's series."""

    def __init__(self, series: Counter) -> None:
        self._series, self._value = series, 0.0

    def add(self, value: float = 1) -> None:
        """Add to it."""
        self._value += value

    def flush(self) -> None:
        """Hand over what has been added."""
        if self._value:
            self._series.inc(self._value)
            self._value = 0.0


class Level:
    """A gauge's series."""

    def __init__(self, series: Gauge) -> None:
        self._series, self._value, self._told = series, 0.0, 0.0

    def set(self, value: float) -> None:
        """Say where it stands."""
        self._value = value

    def add(self, value: float) -> None:
        """Move it."""
        self._value += value

    def flush(self) -> None:
        """Hand over where it stands, if it has moved."""
        if self._value != self._told:
            self._series.set(self._value)
            self._told = self._value


class Spread:
    """A histogram's series.

    Args:
        series: of a `BatchedHistogram`.
        bounds: upper bounds of its buckets, without the last, which has none.
    """

    def __init__(self, series: BatchedHistogram, bounds: Sequence[float]) -> None:
        self._series, self._bounds = series, tuple(bounds)
        self._counts, self._total = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add an observation, as often as it was made."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def flush(self) -> None:
        """Hand over what was observed."""
        if any(self._counts):
            self._series.add(self._counts, self._total)
            self._counts, self._total = [0] * (len(self._bounds) + 1), 0.0
