"""How accurate a network was after each of its epochs, as far as that was measured: on D_v, never on test images.

Papers often report the epoch that is best on the test images, which chooses by what it measures. A run here is measured
on them once, when it has ended. What it might have gained by an earlier end is therefore said of D_v.
"""

from __future__ import annotations

from cascade.fields import Frozen
from training import log
from training.run import Run


class Epochs(Frozen):
    """The last and the best epoch of a stage; accuracies on D_v in [0, 1], of the sum of all stages up to this one.

    Attributes:
        stage: its step.
        last: number of epochs that it was trained for.
        last_dv: accuracy after them.
        best: the first epoch, counted from 1, after which it was highest.
        best_dv: accuracy after that.
    """

    stage: str
    last: int
    last_dv: float
    best: int
    best_dv: float


def epochs_of(run: Run) -> tuple[Epochs, ...]:
    """Last and best epoch of each stage that was trained in this run; one that was taken from another has none.

    Raises:
        RecipeError: the run has not finished, or its `metrics.jsonl` is damaged.
    """
    found, lines = [], log.read(run.folder)
    for stage in run.stages():
        seen = {line["epoch"]: line["dv/accuracy"] for line in lines if line["step"] == stage}
        if seen:
            last, best = max(seen), max(sorted(seen), key=seen.__getitem__)
            found.append(Epochs(stage=stage, last=last, last_dv=seen[last], best=best, best_dv=seen[best]))
    return tuple(found)
