"""Every energy and answer a cascade could give, computed once, so that any thresholds can be tried at once.

The energy of stage i, and the answer after it, do not depend on the thresholds: only whether a sample gets there does.
So one pass over stored logits is enough for every scalar threshold and every vector of thresholds, one a stage.

Source: ResKD, Algorithm 2; the same exits as `cascade.replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition, first, join
from cascade.errors import BadShape
from cascade.exits import Floats, Scores, Threshold, per_stage

Stages = NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """What N samples would do at each of S stages.

    Attributes:
        energies: (N, S) float64, the energy after each stage.
        classes: (N, S) int64, the answer after each stage; the last column is the full cascade's.
        definition: of the energy.
    """

    energies: Scores
    classes: Stages
    definition: EnergyDefinition

    def __len__(self) -> int:
        return len(self.energies)

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return int(self.energies.shape[1])

    def leaving(self, threshold: Threshold) -> Stages:
        """The stage at which each sample leaves: (N,) int64.

        Args:
            threshold: one for all stages, or one for each but the last.

        Raises:
            BadShape: their number is neither.
        """
        limits = per_stage(threshold, self.stages)
        stops = np.ones(self.energies.shape, np.bool_)  # whoever is left leaves at the last
        stops[:, :-1] = self.energies[:, :-1] > np.asarray(limits, np.float64)
        stages: Stages = stops.argmax(axis=1)
        return stages

    def answers(self, leaving: Stages) -> Stages:
        """The class that each sample is given where it leaves: (N,) int64."""
        answers: Stages = self.classes[np.arange(len(self)), leaving]
        return answers

    def part(self, rows: NDArray[np.int64]) -> Trace:
        """The same for some samples."""
        return Trace(self.energies[rows], self.classes[rows], self.definition)


def trace(stage_logits: Sequence[Floats], definition: EnergyDefinition) -> Trace:
    """Follow every sample through every stage.

    Args:
        stage_logits: one (N, K) array a stage, each the stage's own output, not a running sum.
        definition: of the energy.

    Raises:
        BadShape: no stages, or their shapes differ.
    """
    if not stage_logits or any(array.shape != stage_logits[0].shape for array in stage_logits):
        raise BadShape(f"every stage needs logits of one shape, not {[array.shape for array in stage_logits]}")
    sums = [first(stage_logits[0].astype(np.float32))]
    for logits in stage_logits[1:]:
        sums.append(join(sums[-1].logits, sums[-1].energies, logits.astype(np.float32), definition))
    energies = [each.energies for each in sums]
    classes = [each.logits.argmax(axis=1) for each in sums]
    return Trace(np.stack(energies, axis=1), np.stack(classes, axis=1), definition)


def closed(stages: int, definition: EnergyDefinition) -> tuple[float, ...]:
    """Thresholds, one for each stage but the last, that no energy exceeds: the full cascade.

    An energy is at most 1, and `energy > threshold` is false at equality; accumulated, it is at most 1 a stage so far.
    """
    return tuple(1.0 if definition == "summed" else float(number + 1) for number in range(stages - 1))
