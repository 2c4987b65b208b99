"""How a stage joins what came before: its logits are added, its energy replaces or adds.

`summed` (definition A): the energy of the summed logits. `accumulated` (definition B): the energy so far plus the
energy of the new stage's own logits; it grows with every stage and may exceed 1. The two agree on every exit of a
cascade with one res-student, because the loop ends there anyway.

Source: ResKD, Eq. 2 and 11 (summed), Algorithm 2 (accumulated).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cascade.exits import Floats, Scores, energy

EnergyDefinition = Literal["summed", "accumulated"]


def first(logits: Floats) -> tuple[Floats, Scores]:
    """Logits (B, K) and energies (B,) after stage 0."""
    return logits, energy(logits)


def join(logits: Floats, scores: Scores, residual: Floats, definition: EnergyDefinition) -> tuple[Floats, Scores]:
    """Add one res-student.

    Args:
        logits: (B, K) sum so far.
        scores: (B,) energy so far.
        residual: (B, K) logits of the new stage for the same samples, in the same order.
        definition: which energy to go on with.

    Returns:
        The new sum (B, K) and the new energies (B,).
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what has no sum has no energy either, and goes on
        total = logits + residual
    return total, energy(total) if definition == "summed" else scores + energy(residual)
