"""The energy, and the one rule that lets a sample leave."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cascade.combine import first, join
from cascade.errors import BadShape
from cascade.exits import Floats, energy, exits, softmax

INFINITY = math.inf


def table(classes: int = 5, samples: int = 40, seed: int = 0) -> Floats:
    """Logits with energies all over their range."""
    random = np.random.default_rng(seed)
    spread = random.uniform(0, 6, (samples, 1))
    return (random.normal(size=(samples, classes)) * spread).astype(np.float32)


def logit_arrays(most_classes: int = 12) -> st.SearchStrategy[Floats]:
    shape = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=most_classes)
    return arrays.arrays(np.float32, shape, elements=st.floats(-40, 40, width=32))


def test_the_energy_of_a_uniform_prediction_is_one_over_k() -> None:
    assert energy(np.full((2, 4), 7.0, np.float32)) == pytest.approx([0.25, 0.25])


def test_the_energy_of_a_certain_prediction_is_one() -> None:
    assert energy(np.array([[200.0, 0.0, -50.0]], np.float32)).tolist() == [1.0]


def test_the_energy_of_known_probabilities_is_the_sum_of_their_squares() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert energy(logits) == pytest.approx([0.25 + 0.09 + 0.04])


@given(logit_arrays())
def test_the_energy_lies_between_one_over_k_and_one(logits: Floats) -> None:
    found = energy(logits)
    assert (found <= 1.0).all()
    assert (found >= 1 / logits.shape[1] - 1e-6).all()


@given(logit_arrays())
def test_probabilities_sum_to_one(logits: Floats) -> None:
    assert softmax(logits).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_large_logits_do_not_overflow() -> None:
    assert softmax(np.array([[1e30, 1e30, 0.0]], np.float32)).tolist() == [[0.5, 0.5, 0.0]]


def test_logits_beyond_float32_have_no_energy() -> None:
    assert np.isnan(energy(np.array([[1e300, 0.0]]))).all()


def test_the_softmax_is_float32_whatever_the_network_gave() -> None:
    logits = table()
    assert softmax(logits.astype(np.float64)).dtype == np.float32
    assert np.array_equal(energy(logits.astype(np.float64)), energy(logits))


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_the_energy_is_that_of_float64_rounded_so_that_no_library_decides_its_last_bit(classes: int) -> None:
    for row, found in zip(table(classes), energy(table(classes)), strict=True):
        powers = [math.exp(logit - max(row)) for logit in row.astype(np.float64)]
        shares = [float(np.float32(power / math.fsum(powers))) for power in powers]
        assert found == np.float32(math.fsum(share * share for share in shares))


def test_the_energy_is_widened_to_float64() -> None:
    assert energy(table()).dtype == np.float64


@pytest.mark.parametrize("classes", [2, 10, 100, 9000])
def test_the_energy_of_a_sample_is_the_same_to_the_bit_in_any_batch_and_memory_order(classes: int) -> None:
    logits = table(classes, samples=7)
    alone = [energy(logits[row : row + 1])[0] for row in range(7)]
    assert energy(logits).tolist() == alone
    assert energy(np.asfortranarray(logits)).tolist() == alone
    assert energy(logits[::-1])[::-1].tolist() == alone


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 0)])
def test_logits_that_are_no_table_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadShape, match="logits must be"):
        energy(np.zeros(shape, np.float32))


def test_a_sample_stops_above_the_threshold_and_goes_on_below_it() -> None:
    assert exits(np.array([0.7, 0.5]), 0.6).tolist() == [True, False]


def test_equality_goes_on() -> None:
    scores = energy(table())
    assert not exits(scores, scores).any()
    assert not exits(scores[:1], float(scores[0])).any()


def test_nan_goes_on_at_any_threshold() -> None:
    unknown = np.array([np.nan])
    assert [exits(unknown, threshold).tolist() for threshold in (-INFINITY, 0.0, 1.0)] == [[False]] * 3


def test_a_threshold_that_is_nan_lets_nobody_leave() -> None:
    assert not exits(np.array([0.1, 1.0]), math.nan).any()


def test_a_difference_beyond_float32_decides() -> None:
    score = energy(table())[:1]
    below = float(score[0]) - 1e-12
    assert np.float32(below) == np.float32(score[0])
    assert exits(score, below).tolist() == [True]


def test_a_float32_energy_is_compared_with_the_threshold_in_float64() -> None:
    nearly = np.array([np.float32(0.3)])
    assert exits(nearly.astype(np.float64), 0.3).tolist() == [True]  # float32(0.3) is 0.30000001
    assert exits(nearly, 0.3).tolist() == [True]


def test_each_sample_may_have_its_own_threshold() -> None:
    assert exits(np.array([0.5, 0.5]), np.array([0.4, 0.6])).tolist() == [True, False]


@pytest.mark.parametrize("logits", [[INFINITY, 0.0], [INFINITY, INFINITY], [-INFINITY, -INFINITY], [math.nan, 0.0]])
def test_logits_without_a_softmax_go_on(logits: list[float]) -> None:
    scores = energy(np.array([logits], np.float32))
    assert np.isnan(scores).all()
    assert not exits(scores, 0.0).any()


def test_minus_infinity_is_a_class_without_probability() -> None:
    assert energy(np.array([[-INFINITY, 3.0]], np.float32)).tolist() == [1.0]


def test_the_first_stage_brings_its_own_logits_and_energy() -> None:
    logits, scores, _ = first(table())
    assert np.array_equal(logits, table())
    assert np.array_equal(scores, energy(table()))


def test_summed_is_the_energy_of_the_sum() -> None:
    before, residual = table(), table(seed=1)
    total, scores, _ = join(before, energy(before), residual, "summed")
    assert np.array_equal(total, before + residual)
    assert np.array_equal(scores, energy(before + residual))


def test_accumulated_adds_the_energy_of_the_residual_alone() -> None:
    before, residual = table(), table(seed=1)
    total, scores, _ = join(before, energy(before), residual, "accumulated")
    assert np.array_equal(total, before + residual)
    assert np.array_equal(scores, energy(before) + energy(residual))


@given(logit_arrays())
@settings(deadline=None)
def test_the_accumulated_energy_grows_by_at_least_one_over_k_with_every_stage(residual: Floats) -> None:
    before = np.zeros_like(residual)
    _, scores, _ = join(before, energy(before), residual, "accumulated")
    assert (scores > energy(before)).all()
    assert (scores - energy(before) >= 1 / residual.shape[1] - 1e-6).all()


def test_the_summed_energy_falls_where_a_residual_contradicts() -> None:
    sure = np.array([[4.0, 0.0]], np.float32)
    _, scores, _ = join(sure, energy(sure), -sure, "summed")
    assert scores.tolist() == [0.5]


@pytest.mark.parametrize("residual", [[-INFINITY, 0.0], [3e38, 0.0]])
def test_a_sum_without_meaning_goes_on_in_silence(residual: list[float]) -> None:
    before = np.array([[INFINITY, 0.0], [3e38, 0.0]], np.float32)
    _, scores, _ = join(before, energy(before), np.array([residual, residual], np.float32), "summed")
    assert not exits(scores, 1.0).any()
