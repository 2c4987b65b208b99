"""Figures of a cascade by hand-worked numbers, and the rows that show them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cascade.exits import Floats, energy
from cascade.figures import Sample, accuracy, energy_threshold, mean_energy, measure, running_sums, sweep
from cascade.replay import replay
from cascade.table import exits_line, rows

SURE, UNSURE = 50.0, 0.0  # energies of one and of a half, with two classes


def two_classes(*wanted: tuple[int, float]) -> Floats:
    """A row a sample: the class it leans to, and by how much."""
    logits = np.zeros((len(wanted), 2), np.float32)
    for row, (label, strength) in enumerate(wanted):
        logits[row, label] = strength
    return logits


def sample(*, teacher: bool = True) -> Sample:
    """Four samples: two leave at stage 0, one of them wrong; stage 1 puts one of the others right."""
    return Sample(
        split="test",
        labels=np.array([0, 1, 1, 0]),
        stage_logits=[
            two_classes((0, SURE), (0, SURE), (0, UNSURE), (0, UNSURE)),
            two_classes((1, SURE), (1, SURE), (1, SURE), (1, SURE)),
        ],
        costs=[100, 300],
        teacher_logits=two_classes((0, SURE), (1, SURE), (1, SURE), (1, SURE)) if teacher else None,
        teacher_cost=1000 if teacher else 0,
    )


def test_running_sums_add_in_the_order_of_the_stages() -> None:
    parts = [np.full((1, 2), value, np.float32) for value in (1, 10, 100)]
    assert [part[0, 0] for part in running_sums(parts)] == [1, 11, 111]


def test_running_sums_leave_their_parts_alone() -> None:
    parts = [np.ones((1, 2), np.float32) for _ in range(3)]
    running_sums(parts)
    assert all((part == 1).all() for part in parts)


def test_the_energy_of_a_data_set_is_the_mean_over_its_samples() -> None:
    assert mean_energy(two_classes((0, SURE), (0, UNSURE))) == pytest.approx(0.75)


def test_the_mean_energy_is_taken_in_float64() -> None:
    logits = np.random.default_rng(0).normal(size=(20_000, 10)).astype(np.float32)
    exact = math.fsum(energy(logits).tolist()) / len(logits)
    assert mean_energy(logits) == pytest.approx(exact, rel=1e-12)


def test_the_threshold_is_a_share_of_the_reference_energy() -> None:
    assert energy_threshold(two_classes((0, SURE), (0, UNSURE)), 0.9) == pytest.approx(0.675)


def test_accuracy_is_the_share_of_largest_logits_that_are_labels() -> None:
    assert accuracy(two_classes((0, 1), (1, 1), (1, 1)), np.array([0, 1, 0])) == pytest.approx(2 / 3)


def test_every_network_is_measured_alone_and_the_cascade_at_its_threshold() -> None:
    figures = measure(sample(), 0.6, "summed")
    assert figures.teacher is not None
    assert (figures.teacher.accuracy, figures.teacher.macs) == (0.75, 1000)
    assert [network.name for network in figures.sums] == ["S0", "S1"]
    assert [network.macs for network in figures.sums] == [100, 400]
    assert figures.adaptive.accuracy == 0.5
    assert figures.adaptive.macs == 250
    assert figures.exits == (0.5, 0.5)


def test_a_sum_is_measured_on_the_summed_logits() -> None:
    figures = measure(sample(), 0.6, "summed")
    sums = running_sums(sample().stage_logits)
    assert [network.energy for network in figures.sums] == [mean_energy(total) for total in sums]
    assert [network.accuracy for network in figures.sums] == [accuracy(total, sample().labels) for total in sums]


def test_without_a_teacher_there_are_no_figures_of_one() -> None:
    assert measure(sample(teacher=False), 0.6, "summed").teacher is None


def test_the_adaptive_figures_are_those_of_replay() -> None:
    found = replay(sample().stage_logits, 0.9, "accumulated")
    figures = measure(sample(), 0.9, "accumulated")
    assert figures.exits == tuple(found.shares(2))
    assert figures.adaptive.macs == found.mean_cost([100, 300])


def test_a_sweep_measures_each_threshold() -> None:
    rows = sweep(sample(), [0.4, 0.6, 1.0], "summed")
    assert [row["threshold"] for row in rows] == [0.4, 0.6, 1.0]
    assert [row["macs"] for row in rows] == [100.0, 250.0, 400.0]
    assert [row["exits"] for row in rows] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert rows[0]["accuracy"] == measure(sample(), 0.6, "summed").sums[0].accuracy


def test_rows_show_the_teacher_each_sum_and_the_cascade() -> None:
    figures = measure(sample(), 0.6, "summed").model_copy(update={"samples": 4})
    assert rows(figures) == [
        ("teacher", "75.00%", "0.00 M", "250.0%", "1.0000"),
        ("S0", "50.00%", "0.00 M", "25.0%", "0.7500"),
        ("S1", "50.00%", "0.00 M", "100.0%", f"{figures.sums[1].energy:.4f}"),
        ("adaptive", "50.00%", "0.00 M", "62.5%", ""),
    ]


def test_rows_do_without_a_teacher() -> None:
    names = [row[0] for row in rows(measure(sample(teacher=False), 0.6, "summed"))]
    assert names == ["S0", "S1", "adaptive"]


def test_a_cascade_that_costs_nothing_can_be_shown() -> None:
    free = Sample("test", sample().labels, sample().stage_logits, costs=[0, 0])
    assert [row[3] for row in rows(measure(free, 0.6, "summed"))] == ["", "", ""]


def test_exits_are_put_into_words() -> None:
    figures = measure(sample(), 0.6, "summed")
    assert exits_line(figures) == "exits of 4 samples: S0 50.0%, S1 50.0%"
