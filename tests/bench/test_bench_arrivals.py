"""Schedules: in order, reproducible, of the rate that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.arrivals import Arrivals, by_count, by_duration

kinds = st.sampled_from(["constant", "poisson"])
rates = st.floats(0.01, 1e4)
counts = st.integers(0, 300)
seeds = st.integers(0, 2**32)


def test_constant_arrivals_stand_one_gap_apart_from_the_start() -> None:
    assert by_count("constant", 4.0, 3).tolist() == [0.25, 0.5, 0.75]
    assert by_duration("constant", 4.0, 1.1).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    gaps = np.diff(by_count("poisson", 50.0, 20_000, seed=3))
    # The standard error of both is 0.02 / sqrt(20,000): these bounds are more than four of them wide.
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.04)


@given(kinds, rates, counts, seeds)
def test_a_schedule_has_its_count_in_ascending_order_after_the_start(
    kind: Arrivals, rate: float, count: int, seed: int
) -> None:
    offsets = by_count(kind, rate, count, seed)
    assert offsets.shape == (count,)
    assert (np.diff(offsets, prepend=0.0) >= 0).all()


@given(kinds, rates, counts, st.integers(0, 50), seeds)
def test_a_longer_schedule_begins_with_the_shorter(
    kind: Arrivals, rate: float, count: int, more: int, seed: int
) -> None:
    longer = by_count(kind, rate, count + more, seed)
    assert (longer[:count] == by_count(kind, rate, count, seed)).all()


@given(kinds, rates, counts, seeds)
def test_twice_the_rate_is_half_the_time(kind: Arrivals, rate: float, count: int, seed: int) -> None:
    assert (by_count(kind, 2 * rate, count, seed) * 2 == by_count(kind, rate, count, seed)).all()


@given(kinds, st.floats(0.1, 100), st.floats(0.01, 10), seeds)
def test_a_duration_holds_every_arrival_up_to_its_end(
    kind: Arrivals, rate: float, duration_s: float, seed: int
) -> None:
    offsets = by_duration(kind, rate, duration_s, seed)
    beyond = by_count(kind, rate, len(offsets) + 1, seed)
    assert (beyond[:-1] == offsets).all()
    assert (offsets <= duration_s).all()
    assert beyond[-1] > duration_s


def test_a_duration_that_outruns_the_first_draw_is_filled_without_a_seam() -> None:
    """41 gaps are drawn at first; about every other seed needs more."""
    lengths = set()
    for seed in range(20):
        offsets = by_duration("poisson", 1.0, 40.0, seed)
        lengths.add(len(offsets))
        assert (by_count("poisson", 1.0, len(offsets) + 1, seed)[:-1] == offsets).all()
    assert max(lengths) > 41


def test_another_seed_is_another_schedule() -> None:
    assert by_count("poisson", 1.0, 5, seed=1).tolist() != by_count("poisson", 1.0, 5, seed=2).tolist()
