"""What `--compare` and a load may say."""

from __future__ import annotations

import pytest

from bench.errors import AskedWrongly
from bench.plan import FULL, NEVER_EXITS, Load, Variation, check, comparison

S0 = Variation("S0 alone", max_stage=0)
LAST = Variation(FULL, NEVER_EXITS)


@pytest.mark.parametrize("text", ["threshold", "threshold=", "threshold=own"])
def test_a_comparison_without_numbers_takes_the_servers_own_threshold(text: str) -> None:
    assert comparison(text) == [S0, Variation("adaptive"), LAST]


def test_a_comparison_runs_every_threshold_between_the_two_ends() -> None:
    middle = [Variation("adaptive 0.5", 0.5), Variation("adaptive"), Variation("adaptive 1", 1.0)]
    assert comparison("threshold=0.5, own,1.0") == [S0, *middle, LAST]


@pytest.mark.parametrize("text", ["0.5", "stage=1", "threshold=x", "threshold=nan", "threshold=1,1.0", "threshold=1,"])
def test_a_comparison_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(AskedWrongly, match="--compare"):
        comparison(text)


def test_nothing_exits_at_the_full_cascades_threshold() -> None:
    most_stages, most_energy_a_stage = 64, 1.0
    assert most_stages * most_energy_a_stage < NEVER_EXITS


def opened(rate: float, duration_s: float) -> Load:
    return Load(mode="open", connections=4, requests=None, duration_s=duration_s, rate_per_s=rate, arrivals="constant")


@pytest.mark.parametrize(("rate", "duration_s"), [(1e6, 60.0), (0.1, 5.0)])
def test_a_schedule_of_too_many_or_no_arrivals_is_refused(rate: float, duration_s: float) -> None:
    with pytest.raises(AskedWrongly, match="--rate times --duration"):
        check(opened(rate, duration_s))


def test_a_load_says_what_it_is() -> None:
    assert check(opened(20.0, 5.0)).words == "open loop, 20/s constant, at most 4 at a time"
    closed = Load(mode="closed", connections=4, requests=9, duration_s=None)
    assert check(closed).words == "closed loop, 4 at a time"
