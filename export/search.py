"""Which precisions pay: every combination over the stages, measured on D_v, and the Pareto front of accuracy and time.

The time of a combination is what its stages take an image, weighted with how many samples reach them at its own
threshold: t_0 + sum_i t_i Pr(L >= i). It is that of this machine, and of the graphs on pixels, as they are served.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.fields import Frozen
from cascade.figures import Sample
from cascade.files import Precision, Quantiser
from cascade.replay import replay
from export.derive import converted, exit_rule
from export.parts import load
from export.pixel_input import with_pixels
from export.session import Session
from export.show import in_words
from export.sources import Source
from export.timing import BATCHES, Seconds, stage_seconds

# The default, then what differs from it in one thing.
QUANTISERS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "entropy"},
    {"method": "percentile", "percentile": 99.999},
    {"method": "percentile", "percentile": 99.99},
    {"weight_bits": 8},
    {"in_float": ["stem", "classifier"]},
    {"in_float": ["classifier", "additions"]},
    {"in_float": []},
)


@dataclass(frozen=True)
class Variant:
    """One stage in one precision: its graph, its logits (N, K) on D_v, and its seconds an image by batch size."""

    precision: Precision
    quantiser: Quantiser | None
    model: bytes
    logits: Floats
    seconds: Seconds


class Point(Frozen):
    """One combination.

    Attributes:
        precisions: one a stage.
        quantiser: of the int8 stages.
        threshold: by the bundle's rule on this combination's own energies.
        accuracy: of the adaptive cascade on D_v, in [0, 1].
        reached: share of samples that reach each stage.
        seconds: batch size -> mean seconds an image.
        front: batch sizes at which no other combination is as fast and as accurate, and better in one of the two.
    """

    precisions: tuple[Precision, ...]
    quantiser: Quantiser | None
    threshold: float
    accuracy: float
    reached: tuple[float, ...]
    seconds: dict[int, float]
    front: tuple[int, ...] = ()


def search(
    source: Source, *, quantisers: Sequence[Quantiser] | None = None, rounds: int = 21, quiet: bool = False
) -> list[Point]:
    """Measure every combination.

    Args:
        source: a float32 bundle and its images.
        quantisers: to try; all int8 stages of a combination share one. Default: `QUANTISERS`.
        rounds: of timing.
        quiet: show no progress.

    Returns:
        By time at the largest batch size, the fastest first.
    """
    options = [Quantiser.model_validate(each) for each in QUANTISERS] if quantisers is None else list(quantisers)
    stages = [
        variants(source, stage, options, rounds)
        for stage in track(
            range(len(source.bundle.models)), "measuring", console=Console(stderr=True, quiet=quiet), transient=True
        )
    ]
    points = [_point(source, combination) for combination in _combinations(stages)]
    fronts = {batch: front([(point.seconds[batch], point.accuracy) for point in points]) for batch in BATCHES}
    marked = [
        point.model_copy(update={"front": tuple(batch for batch in BATCHES if number in fronts[batch])})
        for number, point in enumerate(points)
    ]
    return sorted(marked, key=lambda point: point.seconds[BATCHES[-1]])


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """The places of those (cost, worth) that no other beats: none is as cheap and worth as much, and better in one."""
    return {
        place
        for place, (cost, worth) in enumerate(points)
        if not any(
            other_cost <= cost and other_worth >= worth and (other_cost, other_worth) != (cost, worth)
            for other_cost, other_worth in points
        )
    }


def run_search(
    source: Source, out: Path, *, quantisers: Sequence[Quantiser] | None = None, quiet: bool = False
) -> None:
    """Search, print a table, and write `search.json`, and `search.png` where matplotlib is installed.

    Raises:
        BundleError: the folder cannot be written.
    """
    points = search(source, quantisers=quantisers, quiet=quiet)
    document = [point.model_dump(mode="json") for point in points]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "search.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleError(str(out), f"cannot write: {error}") from error
    Console().print(table(points))
    _plot(points, out / "search.png")


def table(points: Sequence[Point]) -> Table:
    """What is on a front, for a person."""
    result = Table(
        "precisions",
        "quantiser",
        "accuracy on D_v",
        *(f"us an image, batch {batch}" for batch in BATCHES),
        "on the front at batch",
        caption=f"{sum(bool(point.front) for point in points)} of {len(points)} combinations; one thread, this machine",
    )
    for point in points:
        if point.front:
            times = (f"{point.seconds[batch] * 1e6:.1f}" for batch in BATCHES)
            where = ", ".join(map(str, point.front))
            quantiser = "" if point.quantiser is None else in_words(point.quantiser)
            result.add_row(",".join(point.precisions), quantiser, f"{point.accuracy:.2%}", *times, where)
    return result


def variants(source: Source, stage: int, options: Sequence[Quantiser], rounds: int) -> list[Variant]:
    """Make and measure one stage in every precision, as it is exported: on pixels.

    Args:
        source: a float32 bundle and its images.
        stage: from 0.
        options: how to make it int8, each a variant.
        rounds: of timing.
    """
    kinds: list[tuple[Precision, Quantiser | None]] = [
        ("fp32", None),
        ("fp16", None),
        *(("int8", each) for each in options),
    ]
    models = [_as_exported(source, stage, kind, each) for kind, each in kinds]
    dv = source.splits.dv
    contenders = {str(number): model for number, model in enumerate(models)}
    seconds = stage_seconds(contenders, dv.pixels[: BATCHES[-1]], rounds, dv.rule)
    found = []
    for number, ((kind, each), model) in enumerate(zip(kinds, models, strict=True)):
        [logits] = dv.sample([Session(model, f"stages[{stage}].file", dv.rule)], [0]).stage_logits
        found.append(Variant(kind, each, model, logits, seconds[str(number)]))
    return found


def _as_exported(source: Source, stage: int, kind: Precision, options: Quantiser | None) -> bytes:
    model = converted(source.bundle.models[stage], kind, source.splits, options)
    served: bytes = with_pixels(load(model, f"stages[{stage}].file"), source.splits.dv.rule).SerializeToString()
    return served


def _combinations(stages: Sequence[Sequence[Variant]]) -> Iterator[tuple[Variant, ...]]:
    """One variant a stage; the int8 ones of a combination share their quantiser, as in a manifest."""
    for combination in itertools.product(*stages):
        quantisers = [variant.quantiser for variant in combination if variant.quantiser is not None]
        if all(each == quantisers[0] for each in quantisers):
            yield combination


def _point(source: Source, combination: Sequence[Variant]) -> Point:
    dv, costs = source.splits.dv, source.bundle.manifest.costs()
    sample = Sample("dv", dv.labels, [variant.logits for variant in combination], costs)
    rule = exit_rule(source.bundle.manifest.exit, sample)
    result = replay(sample.stage_logits, rule.threshold, rule.definition)
    reached = [float((result.stages >= stage).mean()) for stage in range(len(combination))]
    return Point(
        precisions=tuple(variant.precision for variant in combination),
        quantiser=next((variant.quantiser for variant in combination if variant.quantiser is not None), None),
        threshold=rule.threshold,
        accuracy=result.accuracy(dv.labels),
        reached=tuple(reached),
        seconds={
            batch: sum(share * variant.seconds[batch] for share, variant in zip(reached, combination, strict=True))
            for batch in BATCHES
        },
    )


def _plot(points: Sequence[Point], path: Path) -> None:
    """Accuracy over time, a panel a batch size, the front joined; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        Console(stderr=True).print("no plot without matplotlib: pip install 'rescade[plot]'", markup=False)
        return
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for batch, axes in zip(BATCHES, figure.subplots(1, len(BATCHES), sharey=True), strict=True):
        for precisions in sorted({point.precisions for point in points}):
            some = [point for point in points if point.precisions == precisions]
            times, accuracies = [point.seconds[batch] * 1e6 for point in some], [point.accuracy * 100 for point in some]
            axes.plot(times, accuracies, "o", label=",".join(precisions), alpha=0.7)
        best = sorted((point.seconds[batch] * 1e6, point.accuracy * 100) for point in points if batch in point.front)
        axes.plot(*zip(*best, strict=True), color="black", linewidth=1, zorder=0)
        axes.set(xlabel=f"us an image, batch {batch}", title=f"batch {batch}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on D_v, %")
    figure.axes[-1].legend(fontsize="small")
    figure.savefig(path, dpi=110)
