"""Plain CNNs beside a ResNet of the same depth and width: JointRD, its parts, and the baselines of its appendix.

    python -m benchmarks.plain --data ~/.cache/rescade/cifar10 --out runs/plain

trains what `--out` does not hold yet, and prints the table. Every network trains on the same 1,000 images of each
class, for as many epochs, with the same schedule and augmentation; one teacher, trained for longer, teaches them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.runs import Result, Training, by_row, image_folder, markdown, results_of, spread

RESNET, PLAIN = "jointrd_resnet18_0.125_cifar", "jointrd_plain_keepds18_0.125_cifar"
DIRAC = f"{PLAIN}_dirac"
SIZE = 16  # pixels a side: a quarter of the work that 32 would be
EPOCHS, TEACHER_EPOCHS = 12, 24
HORIZON = round(0.3 * EPOCHS)  # 60 of 200 epochs in the paper
SCHEDULE = {"batch_size": 64, "lr": 0.1, "policy": "one_cycle", "nesterov": True, "weight_decay": 5e-4}
RUNTIME = {"device": "cpu", "precision": "bf16", "threads": 1}
TEACHER = "teacher"
BASELINE = "naive"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        label: as it is printed.
        model: that is trained.
        method: the method's settings.
        taught: whether there is a teacher in its recipe.
        after: the row whose student it begins with, of the same seed.
    """

    label: str
    model: str
    method: dict[str, Any]
    taught: bool = True
    after: str | None = None


def joint(**settings: Any) -> dict[str, Any]:
    """JointRD's settings, where they differ from the paper's."""
    return {"name": "joint_rd", "horizon": HORIZON, **settings}


KD = {"name": "kd", "bench": "crd"}
ROWS = {
    "resnet": Row("ResNet-18", RESNET, {"name": "vanilla"}, taught=False),
    BASELINE: Row("plain, naive", PLAIN, {"name": "vanilla"}, taught=False),
    "dirac": Row("plain, Dirac", DIRAC, {"name": "vanilla"}, taught=False),
    "kd": Row("KD(logits)", PLAIN, KD),
    "kd_dirac": Row("KD(logits) + Dirac", DIRAC, KD),
    "mse_dirac": Row("KD(MSE) + Dirac", DIRAC, {"name": "margin_kd", "stages": "last"}),
    "mse_all_dirac": Row("KD(MSE_ALL) + Dirac", DIRAC, {"name": "margin_kd", "stages": "all"}),
    "joint_rd": Row("**JointRD**", DIRAC, joint()),
    "without_1": Row("JointRD without path 1", DIRAC, joint(paths=[2, 3])),
    "without_2": Row("JointRD without path 2", DIRAC, joint(paths=[1, 3])),
    "without_3": Row("JointRD without path 3", DIRAC, joint(paths=[1, 2])),
    "during": Row("JointRD, KD during", DIRAC, joint(kd_mode="during")),
    "finetune": Row("JointRD, then KD for as long again", DIRAC, {"name": "finetune_kd"}, after="joint_rd"),
    "joint_teacher": Row(
        "JointRD, teacher from scratch beside it",
        DIRAC,
        joint(teacher_mode="joint", teacher_model=RESNET),
        taught=False,
    ),
    "constant": Row("JointRD, constant factor", DIRAC, joint(horizon=0)),
}


def document(data: str, name: str, seed: int, epochs: int, student: dict[str, Any]) -> dict[str, Any]:
    """A recipe of one network."""
    return {
        "name": name,
        "seed": seed,
        "data": {
            "name": image_folder(data),
            "size": SIZE,
            "augment": {"pad": 2},
            "train_per_class": 1000,
            "dv_fraction": 0.02,
        },
        "runtime": RUNTIME,
        "schedule": {**SCHEDULE, "epochs": epochs},
        "student": student,
        "exit": {"reference": "S_n"},
    }


def trainings(data: str, out: Path, seeds: Iterable[int]) -> list[Training]:
    """The teacher, then every row of every seed."""
    first = document(data, TEACHER, 0, TEACHER_EPOCHS, {"model": RESNET, "method": {"name": "vanilla"}})
    found = [Training(TEACHER, 0, first, out / f"{TEACHER}-0")]
    for seed in seeds:
        for key, row in ROWS.items():
            method = dict(row.method)
            if row.after is not None:
                method["start"] = str(out / f"{row.after}-{seed}" / "steps" / "student" / "network.safetensors")
            recipe = document(data, key, seed, EPOCHS, {"model": row.model, "method": method})
            if row.taught:
                recipe["teacher"] = {"run": str(out / f"{TEACHER}-0"), "step": "student"}
            found.append(Training(key, seed, recipe, out / f"{key}-{seed}"))
    return found


def table(trained: Sequence[Training], results: Sequence[Result]) -> str:
    """Accuracy on the test part, per cent, and how much over the naive plain network's."""
    found = by_row(trained, results)
    spreads = {key: spread([result.accuracy for result in row]) for key, row in found.items()}
    labels = {TEACHER: f"teacher: ResNet-18, {TEACHER_EPOCHS} epochs", **{key: row.label for key, row in ROWS.items()}}
    lines = []
    for key in (TEACHER, *ROWS):
        if key not in spreads:
            continue
        own, base = spreads[key], spreads.get(BASELINE)
        gain = "" if base is None or key in (BASELINE, TEACHER) else f"{own.mean - base.mean:+.2f}"
        lines.append([labels[key], own, gain, own.runs])
    return markdown(["", "accuracy, %", "over naive", "runs"], lines)


@click.command()
@click.option("--data", required=True, help="Image folder of CIFAR-10 with the parts train and test.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/plain"), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), help="Train this row; default all.")
@click.option("--through", default="", help="A command to give each training command to, such as 'nice -n 10'.")
@click.option("--no-train", is_flag=True, help="Only measure what is trained, and print the table.")
def main(data: str, out: Path, seeds: tuple[int, ...], rows: tuple[str, ...], through: str, *, no_train: bool) -> None:
    """Train the rows, measure them, print the table."""
    everything = trainings(data, out, seeds)
    wanted = [] if no_train else [each for each in everything if not rows or each.row in (TEACHER, *rows)]
    print(table(everything, results_of(everything, wanted, out, through)))


if __name__ == "__main__":
    main()
