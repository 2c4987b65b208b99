"""Train the same student by every distillation method that has a row, and set the results side by side.

    python -m benchmarks.distillation train cifar10
    python -m benchmarks.distillation cost cifar10
    python -m benchmarks.distillation table cifar10

`train` may be stopped and called again, for all methods or for some, also several times at once for different ones: a
run whose line is in `results.jsonl` is not run again. Teachers are trained once a trial and taken from their runs by
all others; a run is one recipe, and its folder goes on where it was stopped. `--epochs` are those of students and
teachers alike, and have a folder of their own.

No method was tuned. `benchmarks/distillation_trials.py` has the settings, `benchmarks/distillation.md` what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.distillation_cost import Cost, Stepper, costs
from benchmarks.distillation_trials import ALONE, BODY_FROM, METHODS, NO_DATA, PLAIN, RATES, SEVERAL, TRIALS
from benchmarks.runs import image_folder
from cascade.errors import RecipeError
from cascade.figures import accuracy
from training import data as data_module
from training.data import Batches
from training.device import choose
from training.evaluate import labels_of, logits_of
from training.models.count import macs
from training.recipe import Recipe, parse
from training.run import Run, open_run
from training.steps import run_recipe

IMAGES = Path("~/.cache/rescade/cifar10")
# Where a round has a hundred steps of some methods, and as many of what makes their images.
LONG = {"rounds": 4, "warm_up": 1}
DIVERGED = "lower schedule.lr"  # what training advises where a loss or an energy is not finite, and nowhere else


class Comparison:
    """One trial's runs and results.

    Args:
        name: of the trial.
        out: folder of all trials.
        images: CIFAR-10 as an image folder with `train` and `test`.
        device: to compute on.
        epochs: of students and teachers, where the trial's do not suit.
    """

    def __init__(
        self, name: str, out: Path, images: Path = IMAGES, device: str = "cpu", epochs: int | None = None
    ) -> None:
        self.name, self.trial, self.out, self.images, self.device = name, TRIALS[name], out, images, device
        self.folder = out / name
        if epochs is not None:
            own = {"epochs": epochs}
            self.trial = dataclasses.replace(
                self.trial,
                schedule={**self.trial.schedule, **own},
                teacher_schedule={**self.trial.teacher_schedule, **own},
            )
            self.folder = out / f"{name}-{epochs}-epochs"
        self.results = self.folder / "results.jsonl"

    def data(self) -> dict[str, Any]:
        """The recipe's part on data."""
        given = self.trial.data
        return given if "name" in given else {"name": image_folder(self.images), **given}

    def teacher(self, number: int = 0) -> Path:
        """The run whose network teaches, of the seed `number`; trained if it is not there."""
        folder = self.folder / (f"teacher-{number}" if number else "teacher")
        if not (folder / "cascade.json").exists():
            recipe = self.recipe(number, {"name": PLAIN}, self.trial.teacher, self.trial.teacher_schedule)
            self.note("teacher", number, self.tested(run_recipe(recipe, folder, quiet=True)))
        return folder

    def teachers(self) -> list[Path]:
        """All of them."""
        return [self.teacher(number) for number in range(self.trial.teachers)]

    def recipe(
        self,
        seed: int,
        method: dict[str, Any],
        student: str,
        schedule: dict[str, Any],
        *,
        teachers: Sequence[Path] = (),
        start: str | None = None,
    ) -> Recipe:
        """One run of this trial."""
        given = {
            "name": "distillation",
            "seed": seed,
            "data": self.data(),
            "runtime": {"device": self.device, "precision": self.trial.precision, "threads": 1},
            "schedule": self.trial.schedule,
            "student": {"model": student, "method": method, "schedule": schedule, "start": start},
        }
        taught = [{"run": str(folder), "step": "student"} for folder in teachers]
        if taught:
            given |= {"teacher": taught[0]} if len(taught) == 1 else {"teachers": taught}
        return parse(given, "distillation")

    def recipe_for(self, method: str, seed: int) -> Recipe:
        """A student's run; whatever it begins with is trained if it is not there."""
        start, teachers = None, []
        if method in BODY_FROM:
            self.run(BODY_FROM[method], seed)
            start = str(self.place(BODY_FROM[method], seed))
        if METHODS[method]["name"] not in ALONE:
            teachers = self.teachers() if method in SEVERAL else [self.teacher()]
        schedule = {"lr": RATES[method] * self.trial.schedule["lr"]} if method in RATES else {}
        return self.recipe(seed, METHODS[method], self.trial.student, schedule, teachers=teachers, start=start)

    def place(self, method: str, seed: int) -> Path:
        """Folder of a run."""
        return self.folder / f"{method.replace(', ', '-').replace(' ', '_')}-{seed}"

    def run(self, method: str, seed: int) -> None:
        """Train a student and note what became of it, unless that has been noted."""
        if (method, seed) in self.noted():
            return
        recipe = self.recipe_for(method, seed)
        try:
            found = self.tested(run_recipe(recipe, self.place(method, seed), quiet=True))
        except RecipeError as error:
            if DIVERGED not in str(error):
                raise
            found = {"accuracy": None, "error": str(error)}
        self.note(method, seed, found)

    def tested(self, run: Run) -> dict[str, Any]:
        """What a finished run's student is worth on the test images."""
        device = choose(run.recipe.runtime)
        data = data_module.load(run.recipe.data, quiet=True).to(device.where)
        model, net = run.network("student")
        cost = macs(net, data.preprocess.size)
        logits = logits_of([device.place(net)], data.test, Batches(data.preprocess, device.where))[0]
        return {"accuracy": accuracy(logits, labels_of(data.test)), "model": model, "macs": cost}

    def note(self, method: str, seed: int, found: dict[str, Any]) -> None:
        """Append a line, in one piece, so that several processes may do so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps({"method": method, "seed": seed, **found}) + "\n")

    def noted(self) -> dict[tuple[str, int], dict[str, Any]]:
        """All lines, by method and seed."""
        if not self.results.exists():
            return {}
        rows = [json.loads(line) for line in self.results.read_text().splitlines()]
        return {(row["method"], row["seed"]): row for row in rows}

    def cost(self) -> dict[str, Cost]:
        """Each method's cost of a step, beside those measured with it."""
        recipe = self.recipe(0, METHODS[PLAIN], self.trial.student, {})
        device = choose(recipe.runtime)
        teachers = [
            device.place(open_run(folder).network("student")[1].eval().requires_grad_(requires_grad=False))
            for folder in self.teachers()
        ]
        data = data_module.load(recipe.data, quiet=True).to(device.where)

        def stepper(method: str) -> Stepper:
            taught = teachers if method in SEVERAL else teachers[:1]
            return Stepper(METHODS[method], self.trial.student, taught, data, recipe.schedule, device)

        long = any(method in NO_DATA for method in self.trial.methods)
        return costs({method: stepper(method) for method in self.trial.methods}, **LONG if long else {})


def rows_of(compared: Comparison) -> Iterator[tuple[str, ...]]:
    """The cells of the table, a method a row."""
    noted, taken = compared.noted(), compared.folder / "cost.json"
    cost = json.loads(taken.read_text()) if taken.exists() else {}
    plain = _accuracies(noted, PLAIN)
    for method in compared.trial.methods:
        found = _accuracies(noted, method)
        failed = [row for (name, _), row in noted.items() if name == method and row["accuracy"] is None]
        yield (
            f"`{method}`",
            _spread(found, len(failed)),
            f"{100 * (mean(found) - mean(plain)):+.2f}" if found and plain and method != PLAIN else "",
            next(
                (f"{row['macs'] / 1e6:.2f}" for (name, _), row in noted.items() if name == method and "macs" in row), ""
            ),
            *_cost_cells(cost, method),
        )


def _accuracies(noted: dict[tuple[str, int], dict[str, Any]], method: str) -> list[float]:
    rows = (row for (name, _), row in sorted(noted.items()) if name == method)
    return [row["accuracy"] for row in rows if row["accuracy"] is not None]


def _spread(values: Sequence[float], diverged: int) -> str:
    if not values:
        return f"diverged ({diverged} of {diverged})" if diverged else "not run"
    text = f"{mean(values):.2%}"
    text = f"{text} ± {100 * stdev(values):.2f} ({len(values)})" if len(values) > 1 else f"{text} (1)"
    return f"{text}, {diverged} of {len(values) + diverged} diverged" if diverged else text


def _cost_cells(cost: dict[str, Any], method: str) -> tuple[str, str, str]:
    if method not in cost:
        return "", "", ""
    own, plain = cost[method], cost[PLAIN]
    return f"{own['seconds'] / plain['seconds']:.2f}", f"{own['held'] / plain['held']:.2f}", f"{own['helpers']:,}"


def show(compared: Comparison) -> None:
    """Print the trial as Markdown."""
    taught = [f"{accuracy:.2%}" for accuracy in _accuracies(compared.noted(), "teacher")]
    if taught:
        print(f"Teacher {compared.trial.teacher}: {', '.join(taught)}. Student {compared.trial.student}.\n")
    print("| method | accuracy | to plain, points | M MACs | step | held | helpers |")
    print("|---|---|---|---|---|---|---|")
    for cells in rows_of(compared):
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Train, measure, or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "cost", "table"))
    parser.add_argument("trial", choices=tuple(TRIALS))
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--images", type=Path, default=IMAGES, help="CIFAR-10, with train/ and test/ in class folders")
    parser.add_argument("--methods", nargs="+", choices=("teacher", *METHODS), help="default: the trial's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--epochs", type=int, help="of students and teachers; default: the trial's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    compared = Comparison(options.trial, options.out, options.images, options.device, options.epochs)
    if options.what == "table":
        show(compared)
    elif options.what == "cost":
        found = {name: dataclasses.asdict(cost) for name, cost in compared.cost().items()}
        (compared.folder / "cost.json").write_text(json.dumps(found, indent=2) + "\n")
    else:
        compared.teachers()
        for seed in options.seeds:
            for method in options.methods or compared.trial.methods:
                if method != "teacher":
                    compared.run(method, seed)


if __name__ == "__main__":
    main()
