"""How often a promise of `rescade calibrate` is broken, and what it saves: many calibrations of one bundle.

    python benchmarks/guarantees.py bundles/cifar10 --data IMAGEFOLDER [--logits FILE.npz]

The bundle is run once over the images; everything after that is counting. Two ways to judge a promise:

- *population*: the images at hand are the whole population, each calibration set is drawn from them with replacement,
  and the promise is judged on the population. That is exactly what it speaks of.
- *halves*: the images are split into a calibration and a test half. The test half has a noise of its own, so that a
  promise that is kept may look broken there; and the two halves of one split lean opposite ways.

Shifted images are the same images with noise, blur or less light. Calibrating on clean images says nothing about them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console
from scipy import stats

from cascade import bundle
from cascade.bundle import Bundle
from cascade.trace import trace
from export import guarantee
from export.guarantee import Marks
from export.heldout import from_folder, run
from export.profiles import PILOT
from export.rules import Rule, parse

RULES = (
    "accuracy(0.005, 0.1)",
    "accuracy(0.01, 0.1)",
    "accuracy(0.02, 0.1)",
    "accuracy(0.01, 0.1, average)",
    "agreement(0.005, 0.1)",
    "agreement(0.01, 0.1)",
    "agreement(0.02, 0.1)",
    "agreement(0.01, 0.1, average)",
)
AT_ONCE = 250
Pixels = NDArray[np.uint8]


def noise(pixels: Pixels) -> Pixels:
    """Gaussian noise with a deviation of 0.08 of the range."""
    shifted = pixels + np.random.default_rng(0).normal(0, 0.08 * 255, pixels.shape)
    return np.clip(np.round(shifted), 0, 255).astype(np.uint8)


def blur(pixels: Pixels) -> Pixels:
    """Gaussian blur with a radius of one pixel."""
    images = [Image.fromarray(image).filter(ImageFilter.GaussianBlur(1)) for image in pixels.transpose(0, 2, 3, 1)]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


def dark(pixels: Pixels) -> Pixels:
    """Half the light."""
    return pixels // 2


SHIFTS: dict[str, Callable[[Pixels], Pixels]] = {"noise": noise, "blur": blur, "dark": dark}


@dataclass(frozen=True)
class Risks:
    """What is true of a population at every point of the path.

    Attributes:
        average: (..., P) mean loss.
        worst: (..., P) the mean loss of the exit that loses most.
        macs: (..., P) mean MACs.
    """

    average: NDArray[np.float64]
    worst: NDArray[np.float64]
    macs: NDArray[np.float64]


def risks(marked: Marks, costs: Sequence[int], weights: Any = None) -> Risks:
    """Measure the losses that the promises speak of."""
    counts = marked.counts(weights)
    lost = counts.losses - counts.gains
    reached = counts.samples - np.cumsum(counts.left, axis=-1)
    macs = costs[0] + (reached * np.asarray(costs[1:])).sum(axis=-1) / counts.samples
    return Risks(lost.sum(axis=-1) / counts.samples, (lost / np.maximum(1, counts.left)).max(axis=-1), macs)


class Experiment:
    """Many calibrations on logits of one population."""

    def __init__(self, read: Bundle, stage_logits: Sequence[Any], labels: Any) -> None:
        manifest = read.manifest
        self.costs, self.labels, self.definition = manifest.costs(), labels, manifest.exit.definition
        self.path = guarantee.grid(len(self.costs), len(manifest.labels), self.definition)
        self.marked = self.marks(stage_logits)

    def marks(self, stage_logits: Sequence[Any]) -> dict[str, Marks]:
        """Losses in accuracy and in agreement."""
        traced = trace(stage_logits, self.definition)
        return {
            "accuracy": guarantee.marks(traced, self.labels, self.path),
            "agreement": guarantee.marks(traced, None, self.path),
        }

    def chosen(self, rule: Rule, pilot: Any, rest: Any) -> NDArray[np.int64]:
        """The points that calibration accepts, by how often each sample is in each pilot and in each rest."""
        found = []
        for start in range(0, len(rest), AT_ONCE):
            marked = self.marked[rule.kind]
            searched, counts = (marked.counts(each[start : start + AT_ONCE]) for each in (pilot, rest))
            plan = guarantee.plan(searched, counts.samples, self.path, self.definition, rule)
            p = guarantee.p_values(counts, self.path, self.definition, rule, plan)
            found.append(guarantee.last_accepted(p, plan.starts, rule.delta))
        return np.concatenate(found)

    def row(self, rule: Rule, points: Any, judged: Risks) -> dict[str, Any]:
        """How often the promise is broken, and what is saved."""

        def at(values: Any) -> Any:
            return values[points] if values.ndim == 1 else values[np.arange(len(points)), points]

        average, worst = (at(each) > rule.eps for each in (judged.average, judged.worst))
        full = sum(self.costs)
        return {
            "rule": rule.name,
            "splits": len(points),
            "delta": rule.delta,
            "broken on average": float(average.mean()),
            "broken at an exit": float(worst.mean()),
            "mean loss": float(at(judged.average).mean()),
            "MACs of full": float(at(judged.macs).mean() / full),
            "uncertified": float((points == 0).mean()),
        }


def halves(samples: int, splits: int, size: int, random: np.random.Generator) -> tuple[Any, Any, Any]:
    """Splits without replacement, as counts (R, N): pilot, rest, test."""
    pilot, rest, test = (np.zeros((splits, samples), np.float32) for _ in range(3))
    cut = round(PILOT * size)
    for row in range(splits):
        order = random.permutation(samples)
        pilot[row, order[:cut]], rest[row, order[cut:size]], test[row, order[size:]] = 1, 1, 1
    return pilot, rest, test


def drawn(samples: int, splits: int, size: int, random: np.random.Generator) -> tuple[Any, Any]:
    """Draws with replacement, as counts (R, N): pilot and rest."""
    cut, shares = round(PILOT * size), np.full(samples, 1 / samples)
    pilot, rest = (random.multinomial(count, shares, splits).astype(np.float32) for count in (cut, size - cut))
    return pilot, rest


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    print(f"\n### {title}\n")
    print("| rule | broken on average | broken at an exit | mean loss | MACs of full | uncertified |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        kept = "`" + row["rule"] + "`"
        values = ("broken on average", "broken at an exit")
        shares = " | ".join(f"{row[name]:.1%}" for name in values)
        print(f"| {kept} | {shares} | {row['mean loss']:.3%} | {row['MACs of full']:.1%} | {row['uncertified']:.1%} |")


def main() -> None:
    """Run all of it, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="class folders of images that were not trained on")
    parser.add_argument("--logits", type=Path, help="where logits are kept between runs")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    began = time.perf_counter()
    read = bundle.read(options.bundle)
    stored = _logits(read, options.data, options.logits)
    print(f"logits after {time.perf_counter() - began:.0f} s", file=sys.stderr)
    stages = len(read.manifest.stages)
    clean = [stored[f"stage{stage}"] for stage in range(stages)]
    experiment, random = Experiment(read, clean, stored["labels"]), np.random.default_rng(options.seed)
    samples, size = len(stored["labels"]), len(stored["labels"]) // 2
    error = stats.binom.interval(0.95, options.splits, 0.1)
    print(
        f"{samples:,} images, {options.splits:,} calibrations of {size:,} each, seed {options.seed}. A promise broken"
    )
    print(f"with probability 10 % would be so in {error[0]:.0f} to {error[1]:.0f} of them, 95 % of the time.")
    wanted = [parse(text) for text in RULES]
    shifted = {name: experiment.marks([stored[f"{name}{stage}"] for stage in range(stages)]) for name in SHIFTS}
    pilot, rest = drawn(samples, options.splits, size, random)
    points = {rule: experiment.chosen(rule, pilot, rest) for rule in wanted}
    tables = {
        "Judged on the population": [_judge(experiment, rule, points[rule], experiment.marked) for rule in wanted]
    }
    for name, marked in shifted.items():
        title = f"Calibrated clean, judged on images with {name}"
        tables[title] = [_judge(experiment, rule, points[rule], marked) for rule in wanted]
    pilot, rest, test = halves(samples, options.splits, size, random)
    tables["Judged on the other half"] = [
        _judge(experiment, rule, experiment.chosen(rule, pilot, rest), experiment.marked, test) for rule in wanted
    ]
    for title, rows in tables.items():
        show(title, rows)
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=2) + "\n")
    print(f"all after {time.perf_counter() - began:.0f} s", file=sys.stderr)


def _judge(experiment: Experiment, rule: Rule, points: Any, marked: dict[str, Marks], test: Any = None) -> Any:
    return experiment.row(rule, points, risks(marked[rule.kind], experiment.costs, test))


def _logits(read: Bundle, data: Path, store: Path | None) -> dict[str, Any]:
    if store is not None and store.is_file():
        with np.load(store) as file:
            return dict(file)
    console = Console(stderr=True)
    held_out = from_folder(data, read, console)
    assert held_out.pixels is not None
    arrays: dict[str, Any] = {f"stage{number}": each for number, each in enumerate(held_out.stage_logits)}
    arrays["labels"] = held_out.labels
    for name, shift in SHIFTS.items():
        for number, each in enumerate(run(read, shift(held_out.pixels), console)):
            arrays[f"{name}{number}"] = each
    if store is not None:
        np.savez(store, **arrays)
    return arrays


if __name__ == "__main__":
    main()
