"""Train the same student by every distillation method that learns from one teacher, and set the results side by side.

    python -m benchmarks.distillation train cifar10
    python -m benchmarks.distillation cost cifar10
    python -m benchmarks.distillation table cifar10

`train` may be stopped and called again, for all methods or for some, also several times at once for different ones: a
run whose line is in `results.jsonl` is not run again. The teacher is trained once a trial and taken from its run by all
others; a run is one recipe, and its folder goes on where it was stopped.

The weights of the losses are the CRD benchmark's wherever it has the method, whatever suits them better here: no method
was tuned. `benchmarks/distillation.md` has what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.distillation_cost import Cost, Stepper, costs
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

PLAIN = "vanilla"
METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {"name": PLAIN},
    "kd": {"name": "kd", "bench": "crd"},
    "kd, L2 of logits": {"name": "kd"},
    **{name: {"name": name} for name in ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "nst", "fsp")},
    **{name: {"name": name} for name in ("crd", "crd_kd", "srrl", "semckd", "dml", "simkd", "simkd_joint")},
    "simkd_sequential": {"name": "simkd_sequential"},
    "vanilla, ten times the lr": {"name": PLAIN},
    "kd, ten times the lr": {"name": "kd", "bench": "crd"},
    "simkd, ten times the lr": {"name": "simkd"},
}
FASTER = tuple(row for row in METHODS if "ten times" in row)
COMMON = tuple(row for row in METHODS if row not in FASTER)
# What the registry has beside them, and why it has no row here.
ELSEWHERE = {
    "aekd": "several teachers",
    "aekd_f": "several teachers",
    "aveg": "several teachers",
    "cmi": "makes its own images",
    "cmi_simkd": "makes its own images",
    "dafl": "makes its own images",
    "finetune_kd": "goes on from another student",
    "joint_rd": "networks of its own",
    "margin_kd": "networks of its own",
    "res_kd": "trains what follows a student",
    "simkd_v": "several teachers",
    "slimming": "prunes",
    "zskt": "makes its own images",
}
BODY_FROM = {"simkd_sequential": "simkd"}
PER_CLASS = 1000  # of CIFAR-10's 5,000 training images
SIZE = 16  # pixels a side
IMAGES = Path("~/.cache/rescade/cifar10")
DIVERGED = "lower schedule.lr"  # what training advises where a loss or an energy is not finite, and nowhere else


@dataclass(frozen=True)
class Trial:
    """One teacher and one student on one data set.

    Attributes:
        data: `digits`, or `cifar10`, whose images `--images` says.
        student, teacher: names of networks.
        schedule: of everything.
        teacher_epochs: of the teacher; all else of its schedule is the students'.
        methods: which have a row.
        precision: of the forward pass in training.
    """

    data: str
    student: str
    teacher: str
    schedule: dict[str, Any]
    teacher_epochs: int
    methods: tuple[str, ...] = tuple(METHODS)
    precision: str = "fp32"


_SCHEDULE = {"lr": 0.05, "policy": "one_cycle", "nesterov": True, "weight_decay": 5e-4}
TRIALS = {
    "digits": Trial(
        "digits", "resnet8_0.125_a", "resnet20_a", {**_SCHEDULE, "epochs": 10, "batch_size": 32}, 12, COMMON
    ),
    "cifar10": Trial(
        "cifar10", "resnet8_0.5_a", "resnet14_a", {**_SCHEDULE, "epochs": 8, "batch_size": 64}, 30, precision="bf16"
    ),
    "reuse": Trial(
        "cifar10",
        "resnet20_a",
        "resnet14_2_a",
        {**_SCHEDULE, "epochs": 8, "batch_size": 64},
        16,
        (PLAIN, "kd", "simkd", *FASTER),
        precision="bf16",
    ),
}


class Comparison:
    """One trial's runs and results.

    Args:
        name: of the trial.
        out: folder of all trials.
        images: CIFAR-10 as an image folder with `train` and `test`.
    """

    def __init__(self, name: str, out: Path, images: Path = IMAGES) -> None:
        self.name, self.trial, self.out, self.images = name, TRIALS[name], out, images
        self.folder = out / name
        self.results = self.folder / "results.jsonl"

    def data(self) -> dict[str, Any]:
        """The recipe's part on data."""
        if self.trial.data == "digits":
            return {"name": "digits", "size": SIZE, "augment": {"pad": 2, "flip": False}}
        return {
            "name": image_folder(self.images),
            "size": SIZE,
            "train_per_class": PER_CLASS,
            "augment": {"pad": 2, "flip": True},
            "dv_fraction": 0.05,
        }

    def teacher(self) -> Path:
        """The run whose network teaches; trained if it is not there."""
        folder = self.folder / "teacher"
        if not (folder / "cascade.json").exists():
            recipe = self.recipe(0, {"name": PLAIN}, self.trial.teacher, {"epochs": self.trial.teacher_epochs})
            self.note("teacher", 0, self.tested(run_recipe(recipe, folder, quiet=True)))
        return folder

    def recipe(
        self,
        seed: int,
        method: dict[str, Any],
        student: str,
        schedule: dict[str, Any],
        *,
        teacher: dict[str, Any] | None = None,
        start: str | None = None,
    ) -> Recipe:
        """One run of this trial."""
        given = {
            "name": "distillation",
            "seed": seed,
            "data": self.data(),
            "runtime": {"device": "cpu", "precision": self.trial.precision, "threads": 1},
            "schedule": self.trial.schedule,
            "student": {"model": student, "method": method, "schedule": schedule, "start": start},
            "teacher": teacher,
        }
        return parse(given, "distillation")

    def recipe_for(self, method: str, seed: int) -> Recipe:
        """A student's run; whatever it begins with is trained if it is not there."""
        start = teacher = None
        if method in BODY_FROM:
            self.run(BODY_FROM[method], seed)
            start = str(self.place(BODY_FROM[method], seed))
        if METHODS[method]["name"] not in (PLAIN, "dml", *BODY_FROM):
            teacher = {"run": str(self.teacher()), "step": "student"}
        schedule = {"lr": 10 * self.trial.schedule["lr"]} if method in FASTER else {}
        return self.recipe(seed, METHODS[method], self.trial.student, schedule, teacher=teacher, start=start)

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
        data = data_module.load(run.recipe.data, quiet=True)
        model, net = run.network("student")
        logits = logits_of([net], data.test, Batches(data.preprocess, torch.device("cpu")))[0]
        size = data.preprocess.size
        return {"accuracy": accuracy(logits, labels_of(data.test)), "model": model, "macs": macs(net, size)}

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
        """Every method's cost of a step, beside those measured with it."""
        recipe = self.recipe(0, METHODS[PLAIN], self.trial.student, {})
        device = choose(recipe.runtime)
        teacher = device.place(
            open_run(self.teacher()).network("student")[1].eval().requires_grad_(requires_grad=False)
        )
        data = data_module.load(recipe.data, quiet=True)
        return costs(
            {
                method: Stepper(METHODS[method], self.trial.student, teacher, data, recipe.schedule, device)
                for method in self.trial.methods
            }
        )


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
            _spread(found) + (f", {len(failed)} of {len(found) + len(failed)} diverged" if failed else ""),
            f"{100 * (mean(found) - mean(plain)):+.2f}" if found and plain and method != PLAIN else "",
            next(
                (f"{row['macs'] / 1e6:.2f}" for (name, _), row in noted.items() if name == method and "macs" in row), ""
            ),
            *_cost_cells(cost, method),
        )


def _accuracies(noted: dict[tuple[str, int], dict[str, Any]], method: str) -> list[float]:
    rows = (row for (name, _), row in sorted(noted.items()) if name == method)
    return [row["accuracy"] for row in rows if row["accuracy"] is not None]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    text = f"{mean(values):.2%}"
    return f"{text} ± {100 * stdev(values):.2f} ({len(values)})" if len(values) > 1 else f"{text} (1)"


def _cost_cells(cost: dict[str, Any], method: str) -> tuple[str, str, str]:
    if method not in cost:
        return "", "", ""
    own, plain = cost[method], cost[PLAIN]
    return f"{own['seconds'] / plain['seconds']:.2f}", f"{own['held'] / plain['held']:.2f}", f"{own['helpers']:,}"


def show(compared: Comparison) -> None:
    """Print the trial as Markdown."""
    teacher = compared.noted().get(("teacher", 0))
    if teacher is not None:
        print(f"Teacher {compared.trial.teacher}: {teacher['accuracy']:.2%}. Student {compared.trial.student}.\n")
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
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    compared = Comparison(options.trial, options.out, options.images)
    if options.what == "table":
        show(compared)
    elif options.what == "cost":
        found = {name: dataclasses.asdict(cost) for name, cost in compared.cost().items()}
        (compared.folder / "cost.json").write_text(json.dumps(found, indent=2) + "\n")
    else:
        compared.teacher()
        for seed in options.seeds:
            for method in options.methods or compared.trial.methods:
                if method != "teacher":
                    compared.run(method, seed)


if __name__ == "__main__":
    main()
