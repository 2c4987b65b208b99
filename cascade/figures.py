"""What a cascade achieves on one split, from stored logits: accuracy, energy, cost, exits; and the threshold rule.

Source: ResKD, Eq. 10 and section 4 for the threshold, Algorithm 2 for the exits, and for the cost
`E[cost] = c_0 + sum_i c_i Pr(L >= i)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition
from cascade.exits import Floats, Threshold, energy
from cascade.manifest import Figures, NetworkFigures
from cascade.replay import replay


@dataclass(frozen=True)
class Sample:
    """Stored logits of one split.

    Attributes:
        split: its name.
        labels: (N,) int64.
        stage_logits: (N, K) a stage, each the stage's own output.
        costs: MACs a stage.
        teacher_logits: (N, K), where there is a teacher.
        teacher_cost: MACs of the teacher.
    """

    split: str
    labels: NDArray[np.int64]
    stage_logits: Sequence[Floats]
    costs: Sequence[int]
    teacher_logits: Floats | None = None
    teacher_cost: int = 0


def running_sums(stage_logits: Sequence[Floats]) -> list[Floats]:
    """S_0, S_1, ...: the stages' logits, added in the order a cascade adds them."""
    sums = [stage_logits[0]]
    for logits in stage_logits[1:]:
        sums.append(sums[-1] + logits)
    return sums


def mean_energy(logits: Floats) -> float:
    """Energy(f, D): the mean over samples, in float64."""
    return float(energy(logits).mean())


def energy_threshold(reference: Floats, ratio: float) -> float:
    """TH = rho * Energy(ref, D_v), with `reference` the logits (N, K) of S_n or T on D_v."""
    return ratio * mean_energy(reference)


def accuracy(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Share of samples, in [0, 1], whose largest logit is their label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def measure(sample: Sample, threshold: Threshold, definition: EnergyDefinition) -> Figures:
    """Everything a manifest says about one split."""
    cumulative = np.cumsum(sample.costs)
    sums = tuple(
        _network(f"S{number}", logits, sample.labels, float(cumulative[number]))
        for number, logits in enumerate(running_sums(sample.stage_logits))
    )
    adaptive = replay(sample.stage_logits, threshold, definition)
    teacher = None
    if sample.teacher_logits is not None:
        teacher = _network("teacher", sample.teacher_logits, sample.labels, float(sample.teacher_cost))
    return Figures(
        split=sample.split,
        samples=len(sample.labels),
        teacher=teacher,
        sums=sums,
        adaptive=NetworkFigures(
            name="adaptive", accuracy=adaptive.accuracy(sample.labels), macs=adaptive.mean_cost(sample.costs)
        ),
        exits=tuple(float(share) for share in adaptive.shares(len(sample.stage_logits))),
    )


def sweep(sample: Sample, thresholds: Iterable[float], definition: EnergyDefinition) -> list[dict[str, object]]:
    """Accuracy, mean MACs and exits for each threshold."""
    rows: list[dict[str, object]] = []
    for threshold in thresholds:
        result = replay(sample.stage_logits, threshold, definition)
        rows.append(
            {
                "threshold": threshold,
                "accuracy": result.accuracy(sample.labels),
                "macs": result.mean_cost(sample.costs),
                "exits": [float(share) for share in result.shares(len(sample.stage_logits))],
            }
        )
    return rows


def _network(name: str, logits: Floats, labels: NDArray[np.int64], macs: float) -> NetworkFigures:
    return NetworkFigures(name=name, accuracy=accuracy(logits, labels), macs=macs, energy=mean_energy(logits))
