"""A cascade in one ONNX file against its stages one by one: images a second in process, one thread, CPU.

    python benchmarks/fused.py bundles/cifar10 --images ~/.cache/rescade/cifar10/test

Staged is what a program would do without a server: stage 0 on the batch, energies and exits in numpy, stage 1 on those
that go on, and so forth. Both answer the same batches in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from cascade import bundle
from cascade.pixels import normalise, to_pixels
from cascade.replay import Replay
from export.onefile import fused_bundle
from export.pixel_input import taking
from export.session import Array, sessions
from export.staged import staged
from export.whole import Whole

SIZES = (1, 2, 4, 8, 16, 32, 64)
Run = Callable[[Array], Replay]


def rates(ways: dict[str, Run], batches: list[Array], rounds: int) -> dict[str, float]:
    """Images a second of each way; they take turns at every batch, and a batch counts with its median over rounds."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in batches] for name in ways}
    for number in range(rounds):
        for place, batch in enumerate(batches):
            for name in sorted(ways, reverse=(number + place) % 2 == 1):
                began = time.perf_counter()
                ways[name](batch)
                times[name][place].append(time.perf_counter() - began)
    count = sum(len(batch) for batch in batches)
    return {name: count / sum(map(statistics.median, each)) for name, each in times.items()}


def check(expected: Replay, found: Replay) -> None:
    """Stop where two ways of running a cascade do not agree to the last bit."""
    for name in ("logits", "classes", "stages", "energies"):
        if not np.array_equal(getattr(expected, name), getattr(found, name)):
            raise click.ClickException(f"one file and stages give other {name}")


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--count", default=256, show_default=True, help="Images in a round, spread over the folder.")
@click.option("--rounds", default=21, show_default=True)
def main(folder: Path, images: Path, count: int, rounds: int) -> None:
    """Measure BUNDLE on images of a folder."""
    read = bundle.read(folder)
    rule, leave = read.manifest.preprocess, read.manifest.exit
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[place] for place in np.linspace(0, len(paths) - 1, count).astype(int)]
    inputs = normalise(np.stack([to_pixels(Image.open(path), rule) for path in chosen]), rule)
    stages = sessions(taking(read, "float32").models)
    made = fused_bundle(read)
    assert made.fused is not None
    whole = Whole(made.fused)
    ways: dict[str, Run] = {
        "staged": lambda batch: staged(stages, batch, leave.threshold, leave.definition),
        "fused": lambda batch: whole.run(batch, leave.threshold),
    }
    table = Table("batch", "staged, images/s", "fused, images/s", "fused / staged", title=f"{folder}, {rounds} rounds")
    for size in SIZES:
        batches = [inputs[start : start + size] for start in range(0, count, size)]
        for batch in batches:
            check(ways["staged"](batch), ways["fused"](batch))
        rate = rates(ways, batches, rounds)
        cells = (f"{rate['staged']:,.0f}", f"{rate['fused']:,.0f}", f"{rate['fused'] / rate['staged']:.3f}")
        table.add_row(str(size), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
