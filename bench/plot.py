"""The report as a picture: latency by percentile, and where the images left.

The percentiles stand on a scale of nines, on which p99 and p99.9 have as much room as p50 and p90, because the tail is
what a load test is for. Needs matplotlib, which only this module imports, and only when asked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import BenchError
from bench.report import Document, Report, macs_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
RUN_COLOURS = ("#33658a", "#f26419", "#2f9e77", "#9b4f96", "#d6a419", "#5b6770", "#a63d40", "#6fb1d6")
STAGE_COLOURS = ("#c9dfeb", "#4384aa", "#12405f", "#8fbdd6", "#2a6a91", "#06243a")
PALE = (0, 3)
MAX_POINTS = 2_000
INK, QUIET = "#22303a", "#7a868e"
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
}


def require() -> None:
    """Check that a plot can be drawn, before anything is measured for it.

    Raises:
        BenchError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("a plot needs matplotlib, the extra `plot`: pip install 'rescade[plot]'")


def draw(document: Document, latencies_s: Sequence[Sequence[float]], path: Path) -> None:
    """Draw the report.

    Args:
        document: the figures.
        latencies_s: of each run, its answers' latencies, seconds, in any order; may be empty.
        path: file to write; its suffix names the format.

    Raises:
        BenchError: matplotlib is not installed, or the file cannot be written.
    """
    require()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = labels(document.runs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, max(4.6, 1.1 * len(names))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _latency(left, names, latencies_s)
        _exits(right, names, document.runs)
        figure.suptitle(_title(document), x=0.01, ha="left", fontsize=12)
        try:
            figure.savefig(path, dpi=160)
        except OSError as error:
            raise BenchError(f"cannot write {path}: {error.strerror}") from error


def labels(runs: Sequence[Report]) -> list[str]:
    """A name for each run that tells it from the others."""
    if len({run.name for run in runs}) > 1:
        return [run.name for run in runs]
    return [f"{run.load.connections} at a time" if len(runs) > 1 else run.name for run in runs]


def curve(latencies_s: Sequence[float]) -> tuple[list[float], list[float]]:
    """Every answer's place on the scale of nines, and its latency.

    Args:
        latencies_s: at least one, in any order.

    Returns:
        Nines, 0 at p0, 1 at p90, 2 at p99; and milliseconds; at most about `MAX_POINTS` of each, the slowest answer
        always among them. It stands half a rank below p100, which is infinitely far to the right.
    """
    ordered = np.sort(np.asarray(latencies_s, np.float64)) * 1e3
    count = len(ordered)
    slowest = _nines(100 - 50 / count)
    if count > MAX_POINTS:
        shares = 1 - 10.0 ** -np.linspace(0, slowest, MAX_POINTS)
        ranks = np.unique(np.append((shares * count).astype(np.int64), count - 1))
    else:
        ranks = np.arange(count)
    nines = -np.log10(1 - (ranks + 0.5) / count)
    return [float(x) for x in nines], [float(y) for y in ordered[ranks]]


def _title(document: Document) -> str:
    run = document.runs[0]
    model = f"{run.model} {run.version}" if run.model else "no answer"
    return f"{model}  ·  {run.load.words}" if len({r.load for r in document.runs}) == 1 else model


def _latency(axes: Axes, names: Sequence[str], latencies_s: Sequence[Sequence[float]]) -> None:
    furthest = 2.0
    for number, (name, values) in enumerate(zip(names, latencies_s, strict=True)):
        if not values:
            continue
        x, y = curve(values)
        furthest = max(furthest, x[-1])
        axes.step(x, y, where="mid", color=RUN_COLOURS[number % len(RUN_COLOURS)], linewidth=1.8, label=name)
    ticks = [tick for tick in TICKS if _nines(tick) <= furthest]
    axes.set_xticks([_nines(tick) for tick in ticks], [f"p{tick:g}" for tick in ticks])
    axes.set_xlim(0, furthest)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("latency, ms")
    axes.set_title("Latency by percentile", loc="left", fontweight="bold", fontsize=10.5)
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if any(latencies_s) and len(names) > 1:
        axes.legend(frameon=False, loc="upper left")


def _exits(axes: Axes, names: Sequence[str], runs: Sequence[Report]) -> None:
    stages = max(len(run.exits) for run in runs)
    begun = np.zeros(len(runs))
    for stage in range(stages):
        shares = np.array([100 * run.exits[stage].share if stage < len(run.exits) else 0.0 for run in runs])
        tint = stage % len(STAGE_COLOURS)
        bars: Any = axes.barh(
            range(len(runs)), shares, left=begun, height=0.6, color=STAGE_COLOURS[tint], label=f"stage {stage}"
        )
        texts = [f"{share:.0f} %" if share >= 8 else "" for share in shares]
        axes.bar_label(bars, texts, label_type="center", color=INK if tint in PALE else "white")
        begun = begun + shares
    axes.set_yticks(range(len(runs)), [_caption(name, run) for name, run in zip(names, runs, strict=True)])
    middle, half = (len(runs) - 1) / 2, max(len(runs), 3) / 2
    axes.set_ylim(middle + half, middle - half)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the answers, %")
    axes.set_title("Where images left", loc="left", fontweight="bold", fontsize=10.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if stages:
        axes.legend(
            frameon=False, ncols=min(stages, 6), loc="upper center", bbox_to_anchor=(0.5, -0.13), handlelength=1
        )


def _caption(name: str, run: Report) -> str:
    facts = [f"{run.throughput_per_s:.0f} images/s"]
    if run.accuracy is not None:
        facts.append(f"{100 * run.accuracy:.1f} % right")
    if run.mean_macs is not None:
        facts.append(f"{macs_in_words(run.mean_macs)} MACs")
    return "\n".join([name, *facts])


def _nines(percent: float) -> float:
    return float(-np.log10(1 - percent / 100))
