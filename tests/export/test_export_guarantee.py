"""Promises are kept as often as they say, on populations whose losses are known."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.trace import Trace, closed
from export import guarantee
from export.bounds import binomial_p, fewest
from export.guarantee import Counts, Plan
from export.rules import Rule, parse

pytestmark = pytest.mark.train

SHORT = np.array([[1.0], [0.9], [0.5], [0.1]])


def population(samples: int = 4000, seed: int = 0) -> tuple[Trace, np.ndarray]:
    """Two stages; the surer the first one is, the more often the second agrees with it."""
    random = np.random.default_rng(seed)
    sure = random.uniform(0.1, 1, samples)
    labels = random.integers(0, 5, samples)
    full = np.where(random.random(samples) < 0.9, labels, (labels + 1) % 5)
    first = np.where(
        random.random(samples) < 1 - 0.12 * (1 - sure) ** 2, full, (full + random.integers(1, 5, samples)) % 5
    )
    return Trace(np.stack([sure, sure], 1), np.stack([first, full], 1), "summed"), labels


def planned(start: int, credits: bool = False) -> Plan:
    return Plan(np.array(start), np.array(credits))


def test_the_grid_goes_from_the_full_cascade_to_the_first_stage_alone() -> None:
    path = guarantee.grid(3, 10, "summed")
    assert path.shape == (guarantee.POINTS + 1, 2)
    assert path[0].tolist() == [1, 1]
    assert path[-1] == pytest.approx(0.1)
    assert (np.diff(path[:, 0]) < 0).all()


def test_the_grid_of_accumulated_energies_begins_where_no_sum_of_energies_reaches() -> None:
    assert guarantee.grid(4, 10, "accumulated")[0].tolist() == [3, 3, 3]


def test_losses_and_gains_are_counted_where_a_sample_leaves() -> None:
    traced = Trace(np.array([[0.95, 1], [0.95, 1], [0.6, 1]]), np.array([[1, 2], [2, 1], [3, 3]]), "summed")
    counts = guarantee.marks(traced, np.array([2, 2, 3]), SHORT).counts()
    assert counts.left[:, 0].tolist() == [0, 2, 3, 3]
    assert counts.losses[:, 0].tolist() == [0, 1, 1, 1]
    assert counts.gains[:, 0].tolist() == [0, 1, 1, 1]


def test_without_labels_a_loss_is_another_answer_than_the_full_cascades() -> None:
    traced = Trace(np.array([[0.95, 1], [0.6, 1]]), np.array([[1, 2], [3, 3]]), "summed")
    counts = guarantee.marks(traced, None, SHORT).counts()
    assert counts.losses[:, 0].tolist() == [0, 1, 1, 1]
    assert counts.gains.sum() == 0


def test_weights_count_samples_as_often_as_they_were_drawn() -> None:
    traced = Trace(np.array([[0.95, 1], [0.6, 1]]), np.array([[1, 2], [3, 3]]), "summed")
    counts = guarantee.marks(traced, None, SHORT).counts([[2, 3]])
    assert counts.samples == 5
    assert counts.left[0, :, 0].tolist() == [0, 2, 5, 5]
    assert counts.losses[0, :, 0].tolist() == [0, 2, 2, 2]


def test_the_walk_ends_before_the_first_test_that_fails() -> None:
    p = np.array([1, 0.01, 0.05, 0.2, 0.01])
    assert int(guarantee.last_accepted(p, 1, 0.1)) == 2
    assert int(guarantee.last_accepted(p, 4, 0.1)) == 4
    assert int(guarantee.last_accepted(p, 3, 0.1)) == 0


def test_thresholds_are_accepted_only_if_every_exit_is() -> None:
    rule, path = parse("agreement(0.1, 0.1)"), np.array([[1.0, 1.0], [0.5, 0.5]])
    counts = Counts(np.array([[0, 0], [100, 5]]), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64), 200)
    p = guarantee.p_values(counts, path, "summed", rule, planned(1))
    assert p[1] == pytest.approx(0.9**5)


def test_an_exit_where_nobody_can_leave_needs_no_samples() -> None:
    rule, path = parse("agreement(0.1, 0.1)"), np.array([[1.0, 1.0], [0.5, 1.0]])
    counts = Counts(np.array([[0, 0], [100, 0]]), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64), 200)
    p = guarantee.p_values(counts, path, "summed", rule, planned(1))
    assert p[1] == pytest.approx(0.9**100)


def test_an_exit_where_nobody_left_although_one_could_is_not_certified() -> None:
    rule, path = parse("agreement(0.1, 0.1)"), np.array([[1.0, 1.0], [0.5, 0.5]])
    counts = Counts(np.array([[0, 0], [100, 0]]), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64), 200)
    assert guarantee.p_values(counts, path, "summed", rule, planned(1))[1] == 1


def broken(rule: Rule, calibrations: int = 300, size: int = 1500) -> tuple[float, float]:
    """How often a promise is broken on the population that calibration sets are drawn from, and how often made."""
    traced, labels = population()
    path = guarantee.grid(2, 5, "summed")
    marked = guarantee.marks(traced, labels if rule.kind == "accuracy" else None, path)
    random, shares = np.random.default_rng(1), np.full(len(traced), 1 / len(traced))
    pilot, rest = (marked.counts(random.multinomial(count, shares, calibrations)) for count in (size // 10, size))
    plan = guarantee.plan(pilot, rest.samples, path, "summed", rule)
    points = guarantee.last_accepted(guarantee.p_values(rest, path, "summed", rule, plan), plan.starts, rule.delta)
    truth = marked.counts()
    left = truth.samples if rule.average else np.maximum(1, truth.left[:, 0])
    losses = (truth.losses - truth.gains)[:, 0] / left
    return float((losses[points] > rule.eps).mean()), float((points > 0).mean())


@pytest.mark.parametrize(
    "text",
    ["agreement(0.03, 0.1)", "accuracy(0.03, 0.1)", "agreement(0.02, 0.2, average)", "accuracy(0.02, 0.2, average)"],
)
def test_a_promise_is_broken_no_more_often_than_it_says(text: str) -> None:
    rule = parse(text)
    often, made = broken(rule)
    assert often <= rule.delta + 3 * (rule.delta * (1 - rule.delta) / 300) ** 0.5
    assert made > 0.9


def test_the_first_tested_point_lets_enough_leave_for_a_test_to_pass() -> None:
    traced, _ = population()
    path, rule = guarantee.grid(2, 5, "summed"), parse("agreement(0.05, 0.1)")
    pilot = guarantee.marks(traced, None, path).counts()
    start = int(guarantee.plan(pilot, 1000, path, "summed", rule).starts)
    needed = fewest(lambda samples: float(binomial_p(3, samples, 0.05)), 0.1)
    expected = pilot.left[:, 0] * 1000 / pilot.samples
    assert expected[start] >= needed > expected[start - 1]


def test_a_searched_path_begins_with_the_full_cascade_and_ends_with_the_first_stage_alone() -> None:
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, (200, 3))
    pilot = Trace(random.uniform(0.4, 1, (200, 3)), classes, "summed")
    path = guarantee.searched(pilot, None, [10, 10, 10])
    assert tuple(path[0]) == closed(3, "summed")
    assert (pilot.leaving(tuple(path[-1])) == 0).all()
    assert (np.diff(path, axis=0) <= 0).all()
