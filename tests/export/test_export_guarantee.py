"""Promises are kept as often as they say, on populations whose losses are known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from cascade.trace import Trace, closed
from export import guarantee
from export.bounds import binomial_p, fewest
from export.guarantee import Counts, Marks, Path, Plan
from export.rules import Rule, parse

pytestmark = pytest.mark.train

SHORT = np.array([[1.0], [0.9], [0.5], [0.1]])


def population(samples: int = 4000, seed: int = 0, stages: int = 2) -> tuple[Trace, np.ndarray]:
    """The surer a stage is, the more often the last agrees with it; the later it is, the surer."""
    random = np.random.default_rng(seed)
    sure = random.uniform(0.1, 1, samples)
    labels = random.integers(0, 5, samples)
    full = np.where(random.random(samples) < 0.9, labels, (labels + 1) % 5)
    energies, classes = [], []
    for _ in range(stages - 1):
        agrees = random.random(samples) < 1 - 0.12 * (1 - sure) ** 2
        classes.append(np.where(agrees, full, (full + random.integers(1, 5, samples)) % 5))
        energies.append(sure)
        sure = random.uniform(sure, 1)
    return Trace(np.stack([*energies, energies[-1]], 1), np.stack([*classes, full], 1), "summed"), labels


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


class Trial(NamedTuple):
    """A rule, tried on calibration sets from one population.

    Attributes:
        breakable: points of the path that break the promise on the population.
        broken: share of the calibrations that chose one of these.
        made: share that promised anything.
    """

    breakable: int
    broken: float
    made: float


CALIBRATIONS = 300


def tried(rule: Rule, marked: Marks, path: Path, pilot: Counts, rest: Counts) -> Trial:
    """Calibrate on `rest`, and judge on the population that it was drawn from."""
    plan = guarantee.plan(pilot, rest.samples, path, "summed", rule)
    points = guarantee.last_accepted(guarantee.p_values(rest, path, "summed", rule, plan), plan.starts, rule.delta)
    truth = marked.counts()
    losses, left = truth.losses - truth.gains, np.maximum(1, truth.left)
    mean = losses.sum(axis=1) / truth.samples if rule.average else (losses / left).max(axis=1)
    wrong = mean > rule.eps
    return Trial(int(wrong.sum()), float(wrong[points].mean()), float((points > 0).mean()))


def drawn(marked: Marks, samples: int, population: int, seed: int) -> Counts:
    """Counts of calibration sets, with replacement."""
    shares = np.full(population, 1 / population)
    return marked.counts(np.random.default_rng(seed).multinomial(samples, shares, CALIBRATIONS))


def on_the_grid(rule: Rule, size: int = 1500) -> Trial:
    traced, labels = population()
    path = guarantee.grid(2, 5, "summed")
    marked = guarantee.marks(traced, labels if rule.kind == "accuracy" else None, path)
    pilot, rest = (drawn(marked, count, len(traced), seed) for seed, count in enumerate((size // 10, size)))
    return tried(rule, marked, path, pilot, rest)


def on_a_searched_path(rule: Rule, seed: int, size: int = 1500) -> Trial:
    """Three stages, and a path that one pilot chose for all the calibrations: the promise holds given the pilot."""
    traced, labels = population(stages=3)
    rows = np.random.default_rng(seed).integers(0, len(traced), size)
    truth = labels if rule.kind == "accuracy" else None
    pilot, known = traced.part(rows), None if truth is None else truth[rows]
    path = guarantee.searched(pilot, known, [10, 10, 10])
    marked = guarantee.marks(traced, truth, path)
    return tried(rule, marked, path, guarantee.marks(pilot, known, path).counts(), drawn(marked, size, len(traced), 1))


def assert_kept(rule: Rule, trial: Trial) -> None:
    assert trial.breakable
    assert 0 < trial.broken <= rule.delta + 3 * (rule.delta * (1 - rule.delta) / CALIBRATIONS) ** 0.5
    assert trial.made > 0.9


@pytest.mark.parametrize(
    "text",
    ["agreement(0.015, 0.2)", "accuracy(0.015, 0.2)", "agreement(0.02, 0.2, average)", "accuracy(0.02, 0.2, average)"],
)
def test_a_promise_is_broken_no_more_often_than_it_says(text: str) -> None:
    assert_kept(parse(text), on_the_grid(parse(text)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "text",
    ["agreement(0.02, 0.2)", "accuracy(0.02, 0.2)", "agreement(0.02, 0.2, average)", "accuracy(0.02, 0.2, average)"],
)
def test_a_promise_about_a_searched_threshold_a_stage_is_broken_no_more_often_than_it_says(
    text: str, seed: int
) -> None:
    assert_kept(parse(text), on_a_searched_path(parse(text), seed))


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
