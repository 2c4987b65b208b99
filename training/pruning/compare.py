"""What pruning did to a teacher, and what its student has instead, in numbers.

Source: Park, No, "Prune Your Model Before Distill It", 2022, Eq. 7 and table 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def beside(student: Iterable[int], teacher: Sequence[Layer]) -> tuple[Layer, ...]:
    """A dense student's weights, layer by layer and all together, out of those its teacher had before it was pruned.

    Args:
        student: weights of each of its layers, in order.
        teacher: what `layers` gives.

    Returns:
        Rows under the teacher's names; none where the student has another number of layers. Source: table 10.
    """
    counts = list(student)
    if len(counts) != len(teacher) - 1:
        return ()
    pairs = zip(teacher, [*counts, sum(counts)], strict=True)
    return tuple(Layer(layer=row.layer, kept=count, total=row.total) for row, count in pairs)


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
