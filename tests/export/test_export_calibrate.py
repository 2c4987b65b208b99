"""Thresholds from the exported networks' own logits, and where they came from."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.errors import RecipeError
from cascade.figures import Sample, mean_energy
from export.calibrate import exit_rule
from training.settings import ExitConfig

pytestmark = pytest.mark.train

LOGITS = [np.random.default_rng(seed).normal(size=(30, 4)).astype(np.float32) * 3 for seed in range(3)]
DV = Sample("dv", np.zeros(30, np.int64), LOGITS[:2], [1, 1], LOGITS[2])


def test_the_default_is_nine_tenths_of_the_cascades_energy() -> None:
    found = exit_rule(ExitConfig(), DV, "f" * 64, held_out=True)
    whole = mean_energy(LOGITS[0] + LOGITS[1])
    assert found.threshold == pytest.approx(0.9 * whole)
    assert found.definition == "summed"
    assert found.rule.model_dump() == {
        "name": "energy_ratio",
        "ratio": 0.9,
        "reference": "S_n",
        "energy": whole,
        "samples": 30,
        "fingerprint": "f" * 64,
        "held_out": True,
    }


def test_the_reference_can_be_the_teacher() -> None:
    found = exit_rule(ExitConfig(reference="T", rho=1.0), DV, "f", held_out=False)
    assert found.threshold == mean_energy(LOGITS[2])
    assert (found.rule.reference, found.rule.held_out) == ("T", False)


def test_a_number_is_taken_as_it_is() -> None:
    found = exit_rule(ExitConfig(threshold=0.7, definition="accumulated"), DV, "f", held_out=True)
    assert (found.threshold, found.definition) == (0.7, "accumulated")
    assert found.rule.model_dump(exclude_none=True) == {"name": "fixed"}


def test_a_teacher_that_is_not_there_is_no_reference() -> None:
    alone = Sample("dv", DV.labels, DV.stage_logits, DV.costs)
    with pytest.raises(RecipeError, match="no teacher"):
        exit_rule(ExitConfig(reference="T"), alone, "f", held_out=True)
