"""What pruning did to the teacher of a run: layer by layer, to its labels, and how alike it and the student are."""

from __future__ import annotations

from rich.table import Column, Table

from cascade.errors import RecipeError
from cascade.fields import Frozen
from training.data import Batches, load
from training.device import choose
from training.evaluate import agreement, labels_of, logits_of
from training.pruning.compare import Layer, beside, layers, smoothing
from training.pruning.magnitude import prunable
from training.run import Run


class Pruned(Frozen):
    """One teacher that was pruned.

    Attributes:
        step: of the run.
        layers: what is left of each, and last of all.
        smoothing: Eq. 7 on the training images, against the teacher before its rounds; None where that is not here.
    """

    step: str
    layers: tuple[Layer, ...]
    smoothing: float | None


class Sparsity(Frozen):
    """What was pruned, and the student that learned from it.

    Attributes:
        pruned: all such teachers in order.
        agreement: share of test images, in [0, 1], to which student and teacher give the same class.
        student: its weights, layer by layer, out of the whole teacher's; empty where it has another number of layers.
    """

    pruned: tuple[Pruned, ...]
    agreement: float
    student: tuple[Layer, ...] = ()


def sparsity_of(run: Run, *, quiet: bool = False) -> Sparsity:
    """Measure the pruned teachers of a finished run, without augmentation, in eval mode.

    Args:
        run: finished.
        quiet: show no progress.

    Raises:
        RecipeError: the run has not finished, or nothing was pruned in it.
    """
    student, teacher = run.stages()[0], run.teacher()
    masks = {step: masks for step in rounds(run) if (masks := run.masks(step)) is not None}
    if teacher is None or not masks:
        raise RecipeError(f"no teacher was pruned in {run.folder}: its recipe needs teacher.prune")
    device = choose(run.recipe.runtime)
    data = load(run.recipe.data, quiet=quiet).to(device.where)
    batches = Batches(data.preprocess, device.where)
    nets = {step: run.network(step)[1].to(device.where) for step in ("teacher", *masks, student)}
    unpruned, *pruned = logits_of([nets[step] for step in ("teacher", *masks)], data.train, batches)
    labels = labels_of(data.train)
    found = []
    for (step, left), logits in zip(masks.items(), pruned, strict=True):
        smoother = None if step == "teacher" else smoothing(unpruned, logits, labels)
        found.append(Pruned(step=step, layers=layers(left.counts(nets[step])), smoothing=smoother))
    likeness = agreement(*logits_of([nets[teacher], nets[student]], data.test, batches))
    weights = (weight.numel() for _, weight in prunable(nets[student]))
    return Sparsity(pruned=tuple(found), agreement=likeness, student=beside(weights, found[-1].layers))


def rounds(run: Run) -> list[str]:
    """The teacher's steps that are there, in the order they were trained in."""
    steps = ["teacher"]
    while run.is_done(following := f"teacher_round{len(steps)}"):
        steps.append(following)
    return [step for step in steps if run.is_done(step)]


def sparsity_table(sparsity: Sparsity) -> Table:
    """A row a layer: weights there were, weights left in the last pruned teacher, and the share left in each of them.

    Where the student has as many layers, its weights too, and their share of the weights there were. Source: table 10.
    """
    figures = ["weights", "left", *(pruned.step.removeprefix("teacher_") for pruned in sparsity.pruned)]
    figures += ["student", "share"] if sparsity.student else []
    caption = f"teacher and student agree on {sparsity.agreement:.2%} of the test images"
    table = Table("layer", *(Column(name, justify="right", no_wrap=True) for name in figures), caption=caption)
    for place, rows in enumerate(zip(*(pruned.layers for pruned in sparsity.pruned), strict=True)):
        own = sparsity.student[place : place + 1]
        shares = (f"{row.kept / row.total:.2%}" for row in rows)
        beside_it = (cell for row in own for cell in (f"{row.kept:,}", f"{row.kept / row.total:.2%}"))
        table.add_row(rows[0].layer, f"{rows[-1].total:,}", f"{rows[-1].kept:,}", *shares, *beside_it)
    smoothings = ("-" if pruned.smoothing is None else f"{pruned.smoothing:+.4f}" for pruned in sparsity.pruned)
    table.add_row("smoothing, Eq. 7", "", "", *smoothings)
    return table
