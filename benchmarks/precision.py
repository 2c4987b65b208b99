"""Images a second of bundles against each other, in one process and one thread, each stage and the adaptive cascade.

    python benchmarks/precision.py bundles/cifar10 bundles/cifar10-int8 --images ~/.cache/rescade/cifar10/test

Decoding is left out: every graph is given the pixels, as in the server. Every bundle has its turn in every round;
figures are medians over the rounds, ratios are those of the medians to the first bundle's. In the cascade, samples that
stay are collected into batches of the same size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from cascade import bundle
from cascade.bundle import Bundle
from cascade.combine import first, join
from cascade.exits import exits
from cascade.pixels import Pixels, to_pixels
from export.session import Array, Session, sessions

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=FOLDER)
@click.option("--images", type=FOLDER, required=True, help="Folder with JPEG or PNG files, in folders or not.")
@click.option("--count", default=400, show_default=True, help="Images, drawn from the folder.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--batch", "batches", multiple=True, default=(1, 8), show_default=True)
def main(bundles: tuple[Path, ...], images: Path, count: int, rounds: int, batches: tuple[int, ...]) -> None:
    """Measure BUNDLES, which must take images of the same size; ratios are to the first."""
    read = {folder.name: bundle.read(folder) for folder in bundles}
    inputs = load(images, count, next(iter(read.values())))
    for batch in batches:
        jobs = {name: jobs_of(each, inputs, batch) for name, each in read.items()}
        rates = measure(jobs, len(inputs), rounds)
        reference = next(iter(rates.values()))
        table = Table("bundle", *reference, title=f"images/s, batch {batch}, {len(inputs)} images, {rounds} rounds")
        for name, found in rates.items():
            table.add_row(name, *(f"{rate:,.0f} ({rate / reference[job]:.2f}x)" for job, rate in found.items()))
        Console().print(table)


def load(folder: Path, count: int, read: Bundle) -> Pixels:
    """Images, (N, 3, S, S) uint8, drawn at random but always the same."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in {".jpg", ".jpeg", ".png"})
    drawn = np.random.default_rng(0).permutation(len(paths))[:count]
    return np.stack([to_pixels(Image.open(paths[place]), read.manifest.preprocess) for place in drawn])


def jobs_of(read: Bundle, inputs: Pixels, batch: int) -> dict[str, Callable[[], object]]:
    """What is timed of a bundle: each stage over every image, and the cascade."""
    opened = sessions(read.models, read.manifest.preprocess)

    def alone(session: Session) -> Callable[[], object]:
        return lambda: session.in_batches(inputs, batch)

    stages = {f"stage {number}": alone(session) for number, session in enumerate(opened)}
    return {**stages, "adaptive": lambda: adaptive(read, opened, inputs, batch)}


def adaptive(read: Bundle, opened: list[Session], inputs: Pixels, batch: int) -> Array:
    """The cascade's logits for every image: each stage over those that stay, in batches."""
    rule = read.manifest.exit
    logits, energies, _ = first(opened[0].in_batches(inputs, batch))
    going = np.arange(len(inputs))
    for session in opened[1:]:
        going = going[~exits(energies[going], rule.threshold)]
        if not going.size:
            break
        residual = session.in_batches(inputs[going], batch)
        logits[going], energies[going], _ = join(logits[going], energies[going], residual, rule.definition)
    return logits


def measure(jobs: dict[str, dict[str, Callable[[], object]]], images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Bundle -> job -> images a second, the median over rounds in which each runs once."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):
        for name, each in jobs.items():
            for job, run in each.items():
                began = time.perf_counter()
                run()
                seconds.setdefault((name, job), []).append(time.perf_counter() - began)
    return {
        name: {job: images / float(np.median(seconds[name, job][1:])) for job in each} for name, each in jobs.items()
    }  # the first round sets things up


if __name__ == "__main__":
    main()
