"""Sample-adaptive inference over stored logits, against a slow loop that takes one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cascade.combine import EnergyDefinition
from cascade.errors import BadShape
from cascade.exits import Floats, energy
from cascade.figures import running_sums
from cascade.replay import Replay, replay

DEFINITIONS: tuple[EnergyDefinition, ...] = ("summed", "accumulated")
MACS = [100, 30, 7, 2]


def tables(stages: int = 3, samples: int = 60, classes: int = 4, seed: int = 0) -> list[Floats]:
    """Logits of a cascade whose energies spread over their whole range."""
    random = np.random.default_rng(seed)
    spread = random.uniform(0, 5, (stages, samples, 1))
    return list((random.normal(size=(stages, samples, classes)) * spread).astype(np.float32))


def slow_energy(logits: Sequence[float]) -> float:
    """In float64, from the definition."""
    largest = max(logits)
    powers = [math.exp(value - largest) for value in logits]
    return math.fsum((power / math.fsum(powers)) ** 2 for power in powers)


def slow_cascade(
    stages: Sequence[Floats], sample: int, threshold: float, definition: EnergyDefinition
) -> tuple[list[float], int, float, list[float]]:
    """One sample through the cascade, a stage at a time; also every energy that was tested."""
    logits = [float(value) for value in stages[0][sample]]
    score, stage = slow_energy(logits), 0
    tested = [score]
    while stage < len(stages) - 1 and not score > threshold:
        stage += 1
        residual = [float(value) for value in stages[stage][sample]]
        logits = [total + more for total, more in zip(logits, residual, strict=True)]
        score = slow_energy(logits) if definition == "summed" else score + slow_energy(residual)
        tested.append(score)
    return logits, stage, score, tested


cascades = st.builds(
    tables,
    stages=st.integers(1, 4),
    samples=st.integers(1, 30),
    classes=st.integers(2, 12),
    seed=st.integers(0, 2**32),
)
thresholds = st.floats(0, 2)


@given(cascades, thresholds, st.sampled_from(DEFINITIONS))
@settings(deadline=None)
def test_replay_is_the_algorithm_one_sample_at_a_time(
    stages: list[Floats], threshold: float, definition: EnergyDefinition
) -> None:
    found = replay(stages, threshold, definition)
    for sample in range(len(stages[0])):
        logits, stage, score, tested = slow_cascade(stages, sample, threshold, definition)
        assume(all(abs(value - threshold) > 1e-5 for value in tested))  # float32 may fall on the other side
        assert found.stages[sample] == stage
        assert found.logits[sample] == pytest.approx(logits, abs=1e-5)
        assert found.energies[sample] == pytest.approx(score, abs=1e-5)


@given(cascades, thresholds, st.sampled_from(DEFINITIONS), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_answers_do_not_depend_on_the_order_of_samples_or_on_their_batch(
    stages: list[Floats], threshold: float, definition: EnergyDefinition, random: Random
) -> None:
    whole = replay(stages, threshold, definition)
    order = list(range(len(stages[0])))
    random.shuffle(order)
    cut = len(order) // 3
    for batch in (order, order[:cut] or order, order[cut:], order[:1]):
        part = replay([np.asfortranarray(logits[batch]) for logits in stages], threshold, definition)
        assert np.array_equal(part.logits, whole.logits[batch])
        assert np.array_equal(part.energies, whole.energies[batch])
        assert np.array_equal(part.stages, whole.stages[batch])
        assert np.array_equal(part.classes, whole.classes[batch])


def test_the_class_is_the_largest_logit_of_the_sum_where_the_sample_left() -> None:
    stages = tables()
    found = replay(stages, 0.5)
    sums = running_sums(stages)
    expected = [int(sums[stage][sample].argmax()) for sample, stage in enumerate(found.stages)]
    assert found.classes.tolist() == expected


def test_equality_goes_on_to_the_next_stage() -> None:
    stages = tables(stages=2, samples=1)
    threshold = float(energy(stages[0])[0])
    assert replay(stages, threshold).stages.tolist() == [1]
    assert replay(stages, np.nextafter(threshold, 0)).stages.tolist() == [0]


def test_a_sample_with_nan_logits_runs_every_stage_and_harms_no_other() -> None:
    stages = tables(samples=3)
    stages[0][1] = np.nan
    found = replay(stages, 0.0)
    assert found.stages.tolist() == [0, 2, 0]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_infinite_logits_go_on_to_the_end_without_a_warning(definition: EnergyDefinition) -> None:
    stages = [np.array([[np.inf, 0.0], [1.0, 0.0]], np.float32), np.array([[-np.inf, 0.0], [1.0, 0.0]], np.float32)]
    assert replay([*stages, stages[1]], 0.3, definition).stages.tolist() == [2, 0]


@given(cascades, st.floats(0, 1.2))
@settings(deadline=None)
def test_with_one_residual_both_definitions_agree_on_every_exit(stages: list[Floats], threshold: float) -> None:
    summed, accumulated = (replay(stages[:2], threshold, definition) for definition in DEFINITIONS)
    assert np.array_equal(summed.stages, accumulated.stages)
    assert np.array_equal(summed.logits, accumulated.logits)


def test_with_two_residuals_the_definitions_part_ways() -> None:
    unsure = np.zeros((1, 4), np.float32)
    stages = [unsure, unsure, unsure]
    assert replay(stages, 0.4, "summed").stages.tolist() == [2]
    assert replay(stages, 0.4, "accumulated").stages.tolist() == [1]


@given(cascades)
@settings(deadline=None)
def test_a_higher_threshold_never_lets_more_samples_leave_at_once(stages: list[Floats]) -> None:
    classes = stages[0].shape[1]
    shares = [replay(stages, threshold).shares(len(stages))[0] for threshold in np.linspace(1 / classes, 1, 40)]
    assert shares == sorted(shares, reverse=True)


@given(cascades, st.sampled_from([1.0, 1.5, math.inf]))
@settings(deadline=None)
def test_from_a_threshold_of_one_every_stage_runs(stages: list[Floats], threshold: float) -> None:
    assert (replay(stages, threshold).stages == len(stages) - 1).all()


@given(cascades)
@settings(deadline=None)
def test_below_one_over_k_no_residual_ever_runs(stages: list[Floats]) -> None:
    threshold = 1 / stages[0].shape[1] - 1e-6
    assert (replay(stages, threshold).stages == 0).all()


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_the_full_cascade_is_the_plain_sum(definition: EnergyDefinition) -> None:
    stages = tables()
    assert np.array_equal(replay(stages, math.inf, definition).logits, stages[0] + stages[1] + stages[2])


@given(cascades, thresholds, st.sampled_from(DEFINITIONS))
@settings(deadline=None)
def test_the_mean_cost_is_that_of_the_executions_counted_one_by_one(
    stages: list[Floats], threshold: float, definition: EnergyDefinition
) -> None:
    costs = MACS[: len(stages)]
    found = replay(stages, threshold, definition)
    counted = 0
    for sample in range(len(stages[0])):
        _, last, _, tested = slow_cascade(stages, sample, threshold, definition)
        assume(all(abs(value - threshold) > 1e-5 for value in tested))
        counted += sum(costs[: last + 1])
    assert found.mean_cost(costs) == pytest.approx(counted / len(stages[0]))


def test_the_mean_cost_is_the_first_stage_and_each_later_one_as_often_as_it_is_reached() -> None:
    found = replay(tables(samples=200), 0.6)
    reached = [(found.stages >= stage).mean() for stage in (1, 2)]
    assert found.mean_cost(MACS[:3]) == pytest.approx(100 + 30 * reached[0] + 7 * reached[1])


def test_the_shares_of_the_exits_sum_to_one_and_cover_stages_that_nobody_left_at() -> None:
    shares = replay(tables(), math.inf).shares(3)
    assert shares.tolist() == [0.0, 0.0, 1.0]


def test_accuracy_is_the_share_of_right_classes() -> None:
    right = Replay(np.eye(3, dtype=np.float32), np.array([0, 1, 2]), np.zeros(3, np.int64), np.ones(3))
    assert right.accuracy(np.array([0, 1, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("max_stage", "last"), [(0, 0), (1, 1), (2, 2), (9, 2), (None, 2)])
def test_no_sample_passes_max_stage(max_stage: int | None, last: int) -> None:
    stages = tables()
    found = replay(stages, math.inf, max_stage=max_stage)
    assert (found.stages == last).all()
    assert np.array_equal(found.logits, running_sums(stages)[last])


def test_the_stored_logits_are_left_as_they_are() -> None:
    stages = tables()
    replay(stages, math.inf)
    assert all(np.array_equal(logits, before) for logits, before in zip(stages, tables(), strict=True))


def test_one_stage_is_a_cascade_too() -> None:
    stages = tables(stages=1)
    found = replay(stages, 0.9)
    assert (found.stages == 0).all()
    assert np.array_equal(found.logits, stages[0])


def test_no_samples_give_no_answers() -> None:
    found = replay(tables(samples=0), 0.5)
    assert found.classes.shape == (0,)
    assert found.shares(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("stages", [[], [np.zeros((2, 3)), np.zeros((2, 4))], [np.zeros((2, 3)), np.zeros((3, 3))]])
def test_stages_that_do_not_fit_are_refused(stages: list[Floats]) -> None:
    with pytest.raises(BadShape, match="logits of one shape"):
        replay(stages, 0.5)


@given(cascades, st.lists(thresholds, min_size=3, max_size=3), st.sampled_from(DEFINITIONS))
@settings(deadline=None)
def test_a_threshold_a_stage_is_the_algorithm_with_another_threshold_at_each(
    stages: list[Floats], limits: list[float], definition: EnergyDefinition
) -> None:
    found = replay(stages, tuple(limits[: len(stages) - 1]), definition)
    followed = [replay(stages, math.inf, definition, max_stage=stage) for stage in range(len(stages))]
    for sample, left in enumerate(found.stages):
        tested = [float(each.energies[sample]) for each in followed[:-1]]
        exceeds = [energy > limit for energy, limit in zip(tested, limits, strict=False)]
        assert left == ([*exceeds, True]).index(True)
        assert np.array_equal(found.logits[sample], followed[left].logits[sample])


def test_as_many_equal_thresholds_as_stages_but_the_last_are_one_threshold() -> None:
    stages = tables()
    one, each = replay(stages, 0.5), replay(stages, (0.5, 0.5))
    assert np.array_equal(one.stages, each.stages)


@pytest.mark.parametrize("threshold", [(), (0.5,), (0.5, 0.5, 0.5)])
def test_a_number_of_thresholds_that_fits_no_stages_is_refused(threshold: tuple[float, ...]) -> None:
    with pytest.raises(BadShape, match="for 3 stages: give one for all, or 2"):
        replay(tables(), threshold)
