"""A whole cascade over stored logits: the reference that every server must agree with.

Source: ResKD, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition, first, join
from cascade.errors import BadShape
from cascade.exits import Floats, Scores, Threshold, exits, per_stage


@dataclass(frozen=True)
class Replay:
    """What a cascade answers for N samples.

    Attributes:
        logits: (N, K) sum of the stages that ran.
        classes: (N,) int64, argmax of the logits.
        stages: (N,) int64, the stage at which the sample left; 0 is the first student.
        energies: (N,) float64, the energy that was tested there.
    """

    logits: Floats
    classes: NDArray[np.int64]
    stages: NDArray[np.int64]
    energies: Scores

    def shares(self, stage_count: int) -> NDArray[np.float64]:
        """The share of samples that left at each stage: (stage_count,), sums to 1."""
        return np.bincount(self.stages, minlength=stage_count) / max(1, len(self.stages))

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        """The share of samples, in [0, 1], whose class is their label."""
        return float((self.classes == labels).mean())

    def mean_cost(self, costs: Sequence[float]) -> float:
        """Mean cost of a sample, in the unit of `costs`, one a stage: c_0 + sum_i c_i Pr(L >= i)."""
        return float(np.cumsum(np.asarray(costs, np.float64))[self.stages].mean())


def replay(
    stage_logits: Sequence[Floats],
    threshold: Threshold,
    definition: EnergyDefinition = "summed",
    max_stage: int | None = None,
) -> Replay:
    """Run sample-adaptive inference over logits that every stage computed for every sample.

    Args:
        stage_logits: one (N, K) array a stage, each the stage's own output, not a running sum.
        threshold: energy to be exceeded, for all stages or for each but the last. At 1 or more, with `summed`, every
            stage runs.
        definition: `summed` or `accumulated`.
        max_stage: the last stage that may run; default the last there is.

    Raises:
        BadShape: no stages, their shapes differ, or the thresholds are not as many as the stages but the last.
    """
    if not stage_logits or any(array.shape != stage_logits[0].shape for array in stage_logits):
        raise BadShape(f"every stage needs logits of one shape, not {[array.shape for array in stage_logits]}")
    limits = per_stage(threshold, len(stage_logits))
    last = len(stage_logits) - 1 if max_stage is None else min(max_stage, len(stage_logits) - 1)
    logits, energies, _ = first(stage_logits[0].astype(np.float32))
    stages = np.zeros(len(logits), np.int64)
    going = np.arange(len(logits))
    for stage in range(1, last + 1):
        going = going[~exits(energies[going], limits[stage - 1])]
        if not going.size:
            break
        residual = stage_logits[stage][going].astype(np.float32)
        logits[going], energies[going], _ = join(logits[going], energies[going], residual, definition)
        stages[going] = stage
    return Replay(logits, logits.argmax(axis=1), stages, energies)
