"""One student, taught by a teacher as it is and by the same teacher pruned: "Prune Your Model Before Distill It".

    python -m benchmarks.pruned --data ~/.cache/rescade/cifar10 --out runs/pruned

trains what `--out` does not hold yet, and prints the table. Every seed has a teacher of its own, pruned in seven rounds
of LR rewinding; the students of a seed learn from it as it was, and as it was after two, four and seven of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.runs import Result, Training, by_row, image_folder, markdown, results_of, spread

VGG19 = "vgg_8-8_16-16_32-32-32-32_64-64-64-64_64-64-64-64_prd"  # an eighth of the widths
VGG11 = "vgg_8_16_32-32_64-64_64-64_prd"
SIZE = 16  # pixels a side: a quarter of the work that 32 would be
EPOCHS, TEACHER_EPOCHS, ROUND_EPOCHS = 15, 30, 6
SPARSITY = 0.79
SCHEDULE = {
    "batch_size": 64,
    "lr": 0.1,
    "policy": "one_cycle",
    "nesterov": True,
    "weight_decay": 5e-4,
    "select": "dv_loss",
}
RUNTIME = {"device": "cpu", "precision": "bf16", "threads": 1}
KD = {"name": "kd", "tau": 0.95, "ts_loss": "kl", "t": 10}
ALONE, LAST = "alone", "79"
STEPS = {"unpruned": "teacher", "36": "teacher_round2", "59": "teacher_round4"}
LABELS = {
    ALONE: "no teacher",
    "unpruned": "unpruned",
    "36": "36 % pruned",
    "59": "59 % pruned",
    LAST: "79 % pruned",
}


def trainings(data: str, out: Path, seeds: Iterable[int]) -> list[Training]:
    """Of every seed: the teacher, its rounds and the student of the last one; then the other students."""
    found = []
    for seed in seeds:
        pruned = {
            "model": VGG19,
            "method": {"name": "vanilla"},
            "schedule": {"epochs": TEACHER_EPOCHS},
            "prune": {
                "sparsity": SPARSITY,
                "schedule": {"epochs": ROUND_EPOCHS, "weight_decay": 2e-4, "select": "last"},
            },
        }
        folder = out / f"{LAST}-{seed}"
        teachers = {LAST: pruned, **{key: {"run": str(folder), "step": step} for key, step in STEPS.items()}}
        for key in (LAST, *STEPS, ALONE):
            recipe: dict[str, Any] = {
                "name": f"pruned_{key}",
                "seed": seed,
                "data": {
                    "name": image_folder(data),
                    "size": SIZE,
                    "augment": {"pad": 2},
                    "train_per_class": 1000,
                    "dv_fraction": 0.1,
                    "dv_exclude": True,
                },
                "runtime": RUNTIME,
                "schedule": {**SCHEDULE, "epochs": EPOCHS},
                "student": {"model": VGG11, "method": {"name": "vanilla"} if key == ALONE else KD},
                "exit": {"reference": "S_n"},
            }
            if key != ALONE:
                recipe["teacher"] = teachers[key]
            found.append(Training(key, seed, recipe, out / f"{key}-{seed}"))
    return found


def table(trained: Sequence[Training], results: Sequence[Result]) -> str:
    """Accuracies on the test part, and the share of it on which teacher and student agree, per cent."""
    found = by_row(trained, results)
    lines = []
    for key, label in LABELS.items():
        if key not in found:
            continue
        row = found[key]
        own, base = spread([each.accuracy for each in row]), found.get(ALONE)
        gain = (
            "" if base is None or key == ALONE else f"{own.mean - spread([each.accuracy for each in base]).mean:+.2f}"
        )
        teacher, agreed = (
            spread(known) if (known := [share for share in shares if share is not None]) else ""
            for shares in ([each.teacher for each in row], [each.agreement for each in row])
        )
        lines.append([label, teacher, own, gain, agreed, own.runs])
    return markdown(["teacher", "its accuracy, %", "student, %", "over no teacher", "they agree, %", "runs"], lines)


@click.command()
@click.option("--data", required=True, help="Image folder of CIFAR-10 with the parts train and test.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/pruned"), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--through", default="", help="A command to give each training command to, such as 'nice -n 10'.")
@click.option("--no-train", is_flag=True, help="Only measure what is trained, and print the table.")
def main(data: str, out: Path, seeds: tuple[int, ...], through: str, *, no_train: bool) -> None:
    """Train the rows, measure them, print the table."""
    everything = trainings(data, out, seeds)
    print(table(everything, results_of(everything, [] if no_train else everything, out, through)))


if __name__ == "__main__":
    main()
