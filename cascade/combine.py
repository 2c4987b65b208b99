"""How a stage joins what came before: its logits are added, its energy replaces or adds.

`summed` (definition A): the energy of the summed logits. `accumulated` (definition B): the energy so far plus the
energy of the new stage's own logits; it grows with every stage and may exceed 1. The two agree on every exit of a
cascade with one res-student, because the loop ends there anyway.

Source: ResKD, Eq. 2 and 11 (summed), Algorithm 2 (accumulated).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from cascade.exits import Floats, Scores, energy, norm, softmax

EnergyDefinition = Literal["summed", "accumulated"]


class Sums(NamedTuple):
    """What a cascade knows of B samples after a stage.

    Attributes:
        logits: (B, K) float32, the sum of the stages that ran.
        energies: (B,) float64, to be compared with the threshold.
        shares: (B, K) float32, the softmax of the logits.
    """

    logits: Floats
    energies: Scores
    shares: Floats


def first(logits: Floats) -> Sums:
    """What is known after stage 0, whose logits (B, K) these are."""
    shares = softmax(logits)
    return Sums(logits, norm(shares), shares)


def join(logits: Floats, scores: Scores, residual: Floats, definition: EnergyDefinition) -> Sums:
    """Add one res-student.

    Args:
        logits: (B, K) sum so far.
        scores: (B,) energy so far.
        residual: (B, K) logits of the new stage for the same samples, in the same order.
        definition: which energy to go on with.

    Returns:
        What is known now.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what has no sum has no energy either, and goes on
        total = logits + residual
    shares = softmax(total)
    return Sums(total, norm(shares) if definition == "summed" else scores + energy(residual), shares)
