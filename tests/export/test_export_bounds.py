"""P-values that are valid and limits that hold, against sums over every outcome."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from export.bounds import binomial_p, difference_p, fewest, lower_limit, upper_limit

pytestmark = pytest.mark.train

BETA = 0.005


SAMPLES, EPS = 60, 0.1
OUTCOMES = [pair for pair in itertools.product(range(SAMPLES + 1), repeat=2) if sum(pair) <= SAMPLES]


@pytest.fixture(scope="module")
def p() -> NDArray[np.float64]:
    """The p-value of every number of losses and gains."""
    losses, gains = zip(*OUTCOMES, strict=True)
    return difference_p(losses, gains, SAMPLES, EPS, BETA)


def chance(losses: int, gains: int, up: float, down: float) -> float:
    """How likely these numbers are."""
    ways = math.comb(SAMPLES, losses) * math.comb(SAMPLES - losses, gains)
    return ways * up**losses * down**gains * max(0.0, 1 - up - down) ** (SAMPLES - losses - gains)


def test_the_binomial_p_value_is_the_tail_summed_by_hand() -> None:
    tail = sum(math.comb(50, count) * 0.1**count * 0.9 ** (50 - count) for count in range(3))
    assert float(binomial_p(2, 50, 0.1)) == pytest.approx(tail)


def test_without_samples_nothing_is_rejected() -> None:
    assert float(binomial_p(0, 0, 0.1)) == 1
    assert float(difference_p(0, 0, 0, 0.1, BETA)) == 1


@pytest.mark.parametrize("gains", [0.0, 0.01, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("level", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("beyond", [0.0, 0.05])
def test_a_difference_that_breaks_its_limit_is_rejected_no_more_often_than_the_level(
    gains: float, level: float, beyond: float, p: NDArray[np.float64]
) -> None:
    up = min(gains + EPS + beyond, 1 - gains)
    chances = np.array([chance(lost, gained, up, gains) for lost, gained in OUTCOMES])
    assert chances.sum() == pytest.approx(1)
    assert float(chances[p <= level].sum()) <= level


def test_gains_make_up_for_losses() -> None:
    p = difference_p([20, 20], [0, 15], 2000, 0.01, BETA)
    assert p[1] < 0.1 < p[0]


def test_where_nothing_is_gained_the_tail_is_the_binomial_one_with_room_for_gains() -> None:
    assert difference_p([3], [0], 2000, 0.02, BETA)[0] > binomial_p(3, 2000, 0.02) + BETA


def test_the_limits_of_a_share_are_those_of_the_exact_tails() -> None:
    high, low = float(upper_limit(3, 40, 0.05)), float(lower_limit(3, 40, 0.05))
    assert float(binomial_p(3, 40, high)) == pytest.approx(0.05)
    assert 1 - float(binomial_p(2, 40, low)) == pytest.approx(0.05)


def test_the_limits_of_none_and_of_all_reach_the_ends() -> None:
    assert (float(lower_limit(0, 9, 0.05)), float(upper_limit(9, 9, 0.05))) == (0, 1)


@pytest.mark.parametrize("tolerated", [0, 3])
def test_the_fewest_samples_are_enough_and_one_less_is_not(tolerated: int) -> None:
    needed = fewest(lambda samples: float(binomial_p(tolerated, samples, 0.02)), 0.1)
    assert float(binomial_p(tolerated, needed, 0.02)) <= 0.1 < float(binomial_p(tolerated, needed - 1, 0.02))
