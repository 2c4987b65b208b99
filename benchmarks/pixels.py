"""Graphs that take pixels beside the same graphs on floats, normalised by numpy before each run; one thread, CPU.

python benchmarks/pixels.py BUNDLE... [--rounds 201]
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from cascade import bundle
from cascade.pixels import normalise
from export.pixel_input import taking
from export.timing import BATCHES, stage_seconds


@click.command()
@click.argument("folders", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=201, show_default=True, help="In each, every graph has its turn; medians count.")
def main(folders: tuple[Path, ...], rounds: int) -> None:
    """Measure each stage of BUNDLE... both ways, on pixels and on images that are normalised already."""
    batches = [f"batch {batch}, us an image: floats, uint8" for batch in BATCHES]
    table = Table("stage", "given", *batches, title=f"medians of {rounds} rounds")
    for folder in folders:
        read = bundle.read(folder)
        rule, kinds = read.manifest.preprocess, [taking(read, "float32").models, taking(read, "uint8").models]
        pixels = np.random.default_rng(0).integers(0, 256, (BATCHES[-1], 3, rule.size, rule.size), np.uint8)
        for number, (floats, uint8) in enumerate(zip(*kinds, strict=True)):
            for given, images in (("pixels", pixels), ("normalised", normalise(pixels, rule))):
                found = stage_seconds({"floats": floats, "uint8": uint8}, images, rounds, rule)
                cells = [(found["floats"][batch] * 1e6, found["uint8"][batch] * 1e6) for batch in BATCHES]
                texts = [f"{before:.1f}, {after:.1f} ({after / before:.3f}x)" for before, after in cells]
                table.add_row(f"{folder.name} {number}", given, *texts)
    Console().print(table)


if __name__ == "__main__":
    main()
