"""Figures as tables for a terminal."""

from __future__ import annotations

import textwrap

from rich.table import Table

from cascade.manifest import Figures
from cascade.table import HEADER, exits_line, rows
from training.epochs import Epochs
from training.evaluate import Evaluation, HeadFigures, SweepRow
from training.models.listing import Listed
from training.models.reuse_cost import ReuseCost
from training.published import PublishedRow
from training.recipe import Recipe

GLUE = "\N{NO-BREAK SPACE}"


def accuracy_table(evaluation: Evaluation) -> list[Table]:
    """A table for D_v and one for test; with a sweep, one more each."""
    tables = []
    for name, figures, sweep in (
        ("D_v", evaluation.dv, evaluation.dv_sweep),
        ("test", evaluation.test, evaluation.test_sweep),
    ):
        table = Table(*HEADER, title=f"{name}, threshold {evaluation.threshold:.4f}", caption=exits_line(figures))
        for row in rows(figures):
            table.add_row(*row)
        tables.append(table)
        if sweep:
            tables.append(_sweep_table(name, sweep))
    return tables


def published_line(row: PublishedRow, figures: Figures) -> str:
    """A paper's row beside one's own figures on the test images."""
    line = f"published, {row.source}: {row.name} {spoken(row)} %; here {figures.sums[-1].accuracy:.2%}"
    if row.teacher is not None and figures.teacher is not None:
        line += f"; its teacher {row.teacher:g} %, here {figures.teacher.accuracy:.2%}"
    if row.epoch == "best":
        line += "; its authors take the epoch that is best on the test images, which choose nothing here"
    return line


def epochs_line(epochs: Epochs, *, held_out: bool) -> str:
    """What a stage reached on D_v after its last epoch and its best, and whether D_v was kept out of training."""
    where = "D_v" if held_out else "D_v, which is among the training images"
    last = f"{epochs.last_dv:.2%} after the last epoch, {epochs.last}"
    best = "the best" if epochs.best_dv == epochs.last_dv else f"best {epochs.best_dv:.2%} after epoch {epochs.best}"
    return f"{epochs.stage} on {where}: {last}, {best}"


def head_line(head: HeadFigures) -> str:
    """A head that is not served, by itself."""
    return f"{head.stage}: its {head.name} head, not served: {head.test:.2%} on the test images, {head.dv:.2%} on D_v"


def recipe_lines(name: str, recipe: Recipe) -> list[str]:
    """Where a recipe is, what it learns from what, and the rows that were published of it."""
    teachers = ", ".join(config.model or str(config.run) for config in recipe.teachers_by_step().values())
    lines = [f"{name}: {recipe.data.name}, {recipe.student.model}{teachers and f' from {teachers}'}"]
    if (published := recipe.published) is not None:
        shown = (
            f"{'*' if row == published.row else ''}{row} {spoken(published.get(row))}" for row in published.figures
        )
        lines += [f"    {published.source}", *(f"    {line}" for line in textwrap.wrap(", ".join(shown), 112))]
    return lines


def spoken(row: PublishedRow | None) -> str:
    """A row's figure for a person: `74.12 +- 0.29`; a dash for one that no paper has."""
    if row is None:
        return "-"
    return f"{row.mean:.2f}" if row.std is None else f"{row.mean:.2f} +- {row.std:.2f}"


def network_line(network: Listed) -> str:
    """Name, family, parameters and multiply-accumulates in columns; a dash where the network cannot take the size."""
    counts = (
        f"{value / 1e6:11.3f} M" if value is not None else f"{'-':>13}" for value in (network.params, network.macs)
    )
    return f"{network.name:34} {network.family:16} {' '.join(counts)}"


def reuse_lines(cost: ReuseCost) -> list[str]:
    """Parameters of the parts, then the three shares that the paper prints."""
    counts = {
        "student": cost.student,
        "projector": cost.projectors,
        "reused of the teacher": cost.reused,
        "deployed": cost.deployed,
        "teacher": cost.teacher,
    }
    shares = (("pruning ratio", cost.pruning_ratio), ("of it given up", cost.cost))
    return [
        *(f"{name:24} {value / 1e6:9.3f} M" for name, value in counts.items()),
        *(f"{name:24} {share:9.2%} of the teacher" for name, share in shares),
        f"{'projector':24} {cost.projector_share:9.2%} of the student",
    ]


def _sweep_table(name: str, sweep: tuple[SweepRow, ...]) -> Table:
    table = Table("threshold", "accuracy", "mean MACs", "exits", title=f"{name}, every threshold")
    for row in sweep:
        exits = " ".join(f"{share:.1%}" for share in row.exits)
        table.add_row(f"{row.threshold:.2f}", f"{row.accuracy:.2%}", f"{row.macs / 1e6:.2f} M", exits)
    return table
