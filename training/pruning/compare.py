"""What pruning did to a teacher, and a student's likeness to it, in numbers.

Source: Park, No, "Prune Your Model Before Distill It", 2022, Eq. 7, tables 8 and 10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cascade.fields import Frozen
from training.evaluate import Logits


class Layer(Frozen):
    """Weights left, and weights there were, of one layer; biases and batch norms are not pruned and not counted."""

    layer: str
    kept: int
    total: int


def layers(counts: Mapping[str, tuple[int, int]]) -> tuple[Layer, ...]:
    """A row a layer, and one of all together, from what `Masks.counts` gives. Source: table 10."""
    rows = [Layer(layer=name.removesuffix(".weight"), kept=kept, total=all_) for name, (kept, all_) in counts.items()]
    return (*rows, Layer(layer="total", kept=sum(row.kept for row in rows), total=sum(row.total for row in rows)))


def agreement(one: Logits, other: Logits) -> float:
    """Share of samples, in [0, 1], for which two networks' largest logits (N, K) are of one class. Source: table 8."""
    return float((one.argmax(1) == other.argmax(1)).mean())


def smoothing(unpruned: Logits, pruned: Logits, labels: NDArray[np.int64]) -> float:
    """Mean of `log(p_unpruned[y] / p_pruned[y])`: positive where pruning made labels smoother. Source: Eq. 7.

    Args:
        unpruned: (N, K) logits of the teacher as it was trained.
        pruned: (N, K) logits of the same teacher, pruned.
        labels: (N,) true classes.
    """
    return float((_log_share(unpruned, labels) - _log_share(pruned, labels)).mean())


def _log_share(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log of each sample's probability of its label."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    picked: NDArray[np.float64] = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(1))
    return picked
