"""The table of what runs take."""

from __future__ import annotations

import pytest

from server.costs import Costs

GPU = Costs((1, 2, 4), ((1.0, 1.1, 1.3), (2.0, 2.0, 2.0)))
CPU = Costs((1,), ((0.5,), (0.25,)))


@pytest.mark.parametrize(
    ("count", "seconds"), [(0, 0.0), (1, 1.0), (2, 1.1), (3, 1.3), (4, 1.3), (5, 2.3), (7, 2.6), (8, 2.6)]
)
def test_a_batch_takes_as_long_as_the_next_size_and_a_larger_one_is_run_in_parts(count: int, seconds: float) -> None:
    assert GPU.run(0, count) == pytest.approx(seconds)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_where_time_grows_with_the_batch_company_saves_nothing(count: int) -> None:
    assert CPU.saving(0, count) == 0


def test_company_saves_what_a_run_of_its_own_would_have_taken_more() -> None:
    assert GPU.saving(0, 1) == pytest.approx(1 + 1 - 1.1)
    assert GPU.saving(1, 3) == pytest.approx(2)


def test_company_that_fills_no_batch_saves_nothing() -> None:
    assert GPU.saving(1, 4) == 0


def test_a_backlog_carries_the_share_of_each_stage_that_goes_on() -> None:
    assert CPU.backlog([4, 0], [0.5, 0.9]) == pytest.approx(4 * 0.5 + 2 * 0.25)
    assert CPU.backlog([0, 3], [0.5, 0.9]) == pytest.approx(3 * 0.25)


def test_before_any_measurement_nothing_takes_time() -> None:
    assert Costs.unknown(3).run(2, 50) == 0
