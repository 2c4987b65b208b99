"""Last and best epoch of each stage, on D_v."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cascade.errors import RecipeError
from training.__main__ import main
from training.epochs import Epochs, epochs_of
from training.evaluate import evaluate
from training.run import Run, open_run
from training.table import epochs_line

pytestmark = pytest.mark.train


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A finished run whose lines a test may change."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    return open_run(tmp_path / "run")


def write(run: Run, accuracies: dict[str, list[float]]) -> None:
    lines: list[dict[str, Any]] = [
        {"step": step, "epoch": epoch, "dv/accuracy": value}
        for step, values in accuracies.items()
        for epoch, value in enumerate(values, 1)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_best_epoch_is_the_first_of_the_highest_accuracy(run: Run) -> None:
    write(run, {"teacher": [1.0], "student": [0.5, 0.7, 0.7, 0.6], "residual1": [0.8, 0.9], "student.init": [1.0]})
    assert epochs_of(run) == (
        Epochs(stage="student", last=4, last_dv=0.6, best=2, best_dv=0.7),
        Epochs(stage="residual1", last=2, last_dv=0.9, best=2, best_dv=0.9),
    )


def test_every_stage_of_a_run_has_its_epochs_and_ends_as_it_was_stored(tiny_run: Run) -> None:
    found = epochs_of(tiny_run)
    assert [(epochs.stage, epochs.last) for epochs in found] == [(stage, 2) for stage in tiny_run.stages()]
    assert found[0].last_dv == tiny_run.figures("student")["dv"]["accuracy"]


def test_a_run_without_lines_has_none(run: Run) -> None:
    (run.folder / "metrics.jsonl").unlink()
    assert epochs_of(run) == ()


def test_damaged_lines_are_named(run: Run) -> None:
    (run.folder / "metrics.jsonl").write_text('{"step": "stud')
    with pytest.raises(RecipeError, match=r"metrics\.jsonl is damaged"):
        epochs_of(run)


@pytest.mark.parametrize(
    ("best", "held_out", "line"),
    [
        (3, True, "student on D_v: 60.00% after the last epoch, 4, best 70.00% after epoch 3"),
        (4, True, "student on D_v: 60.00% after the last epoch, 4, the best"),
        (4, False, "student on D_v, which is among the training images: 60.00% after the last epoch, 4, the best"),
    ],
)
def test_a_line_says_what_an_earlier_end_had_given(best: int, line: str, *, held_out: bool) -> None:
    epochs = Epochs(stage="student", last=4, last_dv=0.6, best=best, best_dv=0.6 if best == 4 else 0.7)
    assert epochs_line(epochs, held_out=held_out) == line


def test_evaluate_prints_the_last_and_the_best_epoch_of_every_stage(run: Run) -> None:
    lines = CliRunner().invoke(main, ["evaluate", str(run.folder), "--quiet"]).stdout.splitlines()
    assert all(epochs_line(epochs, held_out=True) in lines for epochs in evaluate(run, quiet=True).epochs)
