"""A trace gives the exits and answers of replay, whatever the thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.combine import EnergyDefinition
from cascade.errors import BadShape
from cascade.exits import Floats
from cascade.replay import replay
from cascade.trace import closed, trace

DEFINITIONS: tuple[EnergyDefinition, ...] = ("summed", "accumulated")


def tables(stages: int = 3, samples: int = 40, seed: int = 0) -> list[Floats]:
    """Logits of four classes whose energies spread over their whole range."""
    random = np.random.default_rng(seed)
    spread = random.uniform(0, 5, (stages, samples, 1))
    return list((random.normal(size=(stages, samples, 4)) * spread).astype(np.float32))


limits = st.lists(st.floats(0, 2.5), min_size=3, max_size=3)


@given(st.integers(1, 4), st.integers(0, 30), st.integers(0, 2**32), limits, st.sampled_from(DEFINITIONS))
@settings(deadline=None)
def test_a_trace_answers_as_replay_does(
    stages: int, samples: int, seed: int, limits: list[float], definition: EnergyDefinition
) -> None:
    logits = tables(stages, samples, seed)
    traced = trace(logits, definition)
    for threshold in (limits[0], tuple(limits[: stages - 1])):
        expected = replay(logits, threshold, definition)
        leaving = traced.leaving(threshold)
        assert np.array_equal(leaving, expected.stages)
        assert np.array_equal(traced.answers(leaving), expected.classes)


def test_nan_goes_on_to_the_last_stage() -> None:
    logits = tables(samples=2)
    logits[0][1] = np.nan
    assert trace(logits, "summed").leaving(0.0).tolist() == [0, 2]


def test_a_part_holds_the_samples_asked_for_in_that_order() -> None:
    traced = trace(tables(), "summed")
    part = traced.part(np.array([5, 2]))
    assert len(part) == 2
    assert np.array_equal(part.energies, traced.energies[[5, 2]])
    assert np.array_equal(part.classes, traced.classes[[5, 2]])


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_nobody_leaves_early_where_every_stage_is_closed(definition: EnergyDefinition) -> None:
    logits = [np.full((1, 2), 0, np.float32) + np.array([[99, 0]], np.float32)] * 3  # energies of one
    assert trace(logits, definition).leaving(closed(3, definition)).tolist() == [2]


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadShape, match="logits of one shape"):
        trace([np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)], "summed")
