"""Trainings whose accuracies make a table: each a recipe and a process of its own, none trained twice.

A run is known by its row and seed, and belongs to its recipe's hash: change the recipe, and it is trained anew, in
another folder. `results.jsonl` has a line for every run that is whole and measured.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from cascade.fields import Frozen
from cascade.figures import accuracy
from training.data import Batches, Data, load
from training.evaluate import agreement, labels_of, logits_of
from training.recipe import parse
from training.run import open_run


@dataclass(frozen=True)
class Training:
    """One run of a table.

    Attributes:
        row: of the table.
        seed: of the run.
        document: its recipe, as plain values.
        folder: of the run.
    """

    row: str
    seed: int
    document: dict[str, Any]
    folder: Path

    @cached_property
    def run_id(self) -> str:
        """The hash of its recipe."""
        return parse(self.document, self.row).run_id()


class Result(Frozen):
    """What came of a run: shares of the test images, in [0, 1].

    Attributes:
        row, seed, run_id: which run.
        accuracy: of its student.
        teacher: accuracy of its teacher, if it has one.
        agreement: test images for which both say the same.
    """

    row: str
    seed: int
    run_id: str
    accuracy: float
    teacher: float | None = None
    agreement: float | None = None


def image_folder(path: str | Path) -> str:
    """An image folder as recipes name it, however it was written: from the home folder on, where it lies there."""
    whole, home = Path(path).expanduser().absolute(), Path.home()
    return f"imagefolder:{Path('~') / whole.relative_to(home) if whole.is_relative_to(home) else whole}"


def read(path: Path) -> list[Result]:
    """The results in a file; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result.model_validate_json(line) for line in lines]


def done(trainings: Iterable[Training], results: Iterable[Result]) -> list[Training]:
    """Those that have a result."""
    known = {(result.row, result.seed, result.run_id) for result in results}
    return [training for training in trainings if (training.row, training.seed, training.run_id) in known]


def train(trainings: Sequence[Training], results: Sequence[Result], through: str = "") -> None:
    """Train, one after another, whatever has no result and is not finished; what was stopped goes on.

    Args:
        trainings: a run that teaches another comes before it.
        results: of runs that are not trained again.
        through: a command that each training command is given to, such as `nice -n 10`.

    Raises:
        CalledProcessError: a training failed.
    """
    for training in trainings:
        if training in done([training], results) or (training.folder / "cascade.json").exists():
            continue
        recipe = training.folder.with_suffix(".yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump(training.document, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "rescade", "train", str(recipe), "--out", str(training.folder), "--quiet"]
        subprocess.run([*shlex.split(through), *command], check=True)


def measure(trainings: Sequence[Training], path: Path) -> list[Result]:
    """Every result there is, once those of finished runs that have none are added to the file."""
    results = read(path)
    data: dict[str, Data] = {}
    for training in trainings:
        if training in done([training], results) or not (training.folder / "cascade.json").exists():
            continue
        config = parse(training.document, training.row).data
        key = config.model_dump_json()
        if key not in data:
            data[key] = load(config)
        results.append(measured(training, data[key]))
        with path.open("a", encoding="utf-8") as file:
            file.write(results[-1].model_dump_json(exclude_none=True) + "\n")
    return results


def results_of(
    everything: Sequence[Training], wanted: Sequence[Training], out: Path, through: str = ""
) -> list[Result]:
    """Train what is wanted and has no result yet, then measure whatever is finished and was not.

    Args:
        everything: all runs of the table.
        wanted: those to train, in order.
        out: folder of the runs and of `results.jsonl`.
        through: as of `train`.
    """
    path = out / "results.jsonl"
    train(wanted, read(path), through)
    return measure(everything, path)


def measured(training: Training, data: Data) -> Result:
    """The figures of a finished run on the test part."""
    run = open_run(training.folder)
    teaching = run.teacher()
    steps = [run.stages()[0], *([] if teaching is None else [teaching])]
    nets = [run.network(step)[1] for step in steps]
    logits = logits_of(nets, data.test, Batches(data.preprocess, torch.device("cpu")))
    found = [accuracy(each, labels_of(data.test)) for each in logits]
    both = {} if teaching is None else {"teacher": found[1], "agreement": agreement(*logits)}
    return Result(row=training.row, seed=training.seed, run_id=training.run_id, accuracy=found[0], **both)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of percentages over runs; no deviation of one run."""

    mean: float
    deviation: float | None
    runs: int

    def __str__(self) -> str:
        """As it stands in a table."""
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def spread(shares: Sequence[float]) -> Spread:
    """Of shares in [0, 1], in per cent."""
    per_cent = [100 * share for share in shares]
    return Spread(statistics.mean(per_cent), statistics.stdev(per_cent) if len(per_cent) > 1 else None, len(per_cent))


def by_row(trainings: Sequence[Training], results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each row, by seed; rows without any are left out."""
    wanted = {(training.row, training.seed, training.run_id) for training in trainings}
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        if (result.row, result.seed, result.run_id) in wanted:
            found.setdefault(result.row, []).append(result)
    return found


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
