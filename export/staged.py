"""A cascade as a program runs it that has its stages one by one: each on the samples that go on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascade.combine import EnergyDefinition, first, join
from cascade.exits import exits
from cascade.pixels import Pixels
from cascade.replay import Replay
from export.session import Array, Session


def staged(stages: Sequence[Session], images: Array | Pixels, threshold: float, definition: EnergyDefinition) -> Replay:
    """Answer one batch.

    Args:
        stages: in order.
        images: (N, 3, S, S), normalised as float32 or pixels as uint8.
        threshold: for all samples, at every stage.
        definition: of the energy.

    Raises:
        BundleError: a stage fails on it.

    Source: ResKD, Algorithm 2.
    """
    logits, energies, _ = first(stages[0].run(images))
    left = np.zeros(len(images), np.int64)
    going = np.arange(len(images))
    for number, stage in enumerate(stages[1:], start=1):
        going = going[~exits(energies[going], threshold)]
        if not going.size:
            break
        residual = stage.run(images[going])
        logits[going], energies[going], _ = join(logits[going], energies[going], residual, definition)
        left[going] = number
    return Replay(logits, logits.argmax(axis=1), left, energies)
