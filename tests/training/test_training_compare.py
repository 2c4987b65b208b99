"""Layer tables, agreement and Eq. 7, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluate import agreement
from training.pruning.compare import Layer, beside, layers, smoothing

pytestmark = pytest.mark.train


def logits(*rows: tuple[float, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(rows, dtype=np.float32)


def test_the_layer_table_ends_in_the_sum() -> None:
    table = layers({"stem.0.weight": (3, 4), "classifier.weight": (1, 6)})
    assert table[0] == Layer(layer="stem.0", kept=3, total=4)
    assert table[-1] == Layer(layer="total", kept=4, total=10)


def test_a_student_of_another_number_of_layers_has_no_rows_beside_its_teacher() -> None:
    teacher = layers({"stem.0.weight": (3, 4), "classifier.weight": (1, 6)})
    assert beside([2], teacher) == beside([2, 1, 1], teacher) == ()
    assert beside([2, 1], teacher)[-1] == Layer(layer="total", kept=3, total=10)


def test_networks_agree_where_their_largest_logits_are_of_one_class() -> None:
    assert agreement(logits((1, 2), (3, 0), (0, 1)), logits((0, 9), (1, 2), (4, 5))) == pytest.approx(2 / 3)


def test_a_teacher_that_gives_the_label_less_is_smoother() -> None:
    sure, unsure = logits((np.log(9), 0), (0, np.log(4))), logits((np.log(3), 0), (0, 0))
    expected = (np.log(0.9 / 0.75) + np.log(0.8 / 0.5)) / 2
    assert smoothing(sure, unsure, np.array([0, 1])) == pytest.approx(expected)
    assert smoothing(unsure, sure, np.array([0, 1])) == pytest.approx(-expected)


def test_logits_of_any_size_are_compared() -> None:
    assert smoothing(logits((1e4, 0)), logits((0, 1e4)), np.array([0])) == pytest.approx(1e4)
