"""Drawings of a calibration. Needs matplotlib, which only this module imports, and only when asked.

Each drawing is small enough to be read on a telephone, and several stand beside each other on a wide screen.
Source of the first: ResKD, Figures 3 and 4.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.errors import RecipeError
from cascade.exits import Scores
from cascade.rules import Profile
from cascade.trace import Trace
from export.curves import Labels, Reliability, against_cost, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, LINE = "#22303a", "#75828b", "#dfe4e8"
VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", LINE: "var(--line)"}
CALIBRATION, TEST, RIGHT, WRONG, MARK = "#3b82c4", "#e0893a", "#2f9e77", "#d1495b", "#9b59b6"
STAGES = ("#8fb9dd", "#3b82c4", "#1f4e79", "#a3a8d6", "#6c5fb0", "#3f2f7a")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "rescade",
}
SIZE = (4.7, 3.5)


@dataclass(frozen=True)
class Samples:
    """What is drawn of one part of the data.

    Attributes:
        name: of the part.
        traced: N samples.
        truth: (N,) labels, or the full cascade's answers where there are none.
    """

    name: str
    traced: Trace
    truth: Labels


@dataclass(frozen=True)
class Drawing:
    """A figure under a name, with what it shows in words."""

    name: str
    words: str
    figure: Figure


def require() -> None:
    """Check that there is something to draw with, before anything is measured.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RecipeError("a report needs matplotlib, the extra `plot`: pip install 'rescade[plot]'")


def tradeoff(part: Samples, costs: Sequence[float], path: Scores, profiles: Sequence[Profile], measure: str) -> Drawing:
    """Accuracy against mean cost, for every threshold, with the profiles marked."""

    def draw(axes: Axes) -> None:
        spent, right = against_cost(part.traced, part.truth, costs, path)
        axes.axhline(100 * right[0], color=QUIET, linewidth=1, linestyle="--", zorder=1)
        axes.annotate(
            "full cascade",
            (1, 100 * right[0]),
            (0, 4),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            fontsize=8.5,
            color=INK,
        )
        axes.plot(spent / 1e6, 100 * right, color=CALIBRATION, linewidth=1.8, zorder=2)
        for number, profile in enumerate(profiles, 1):
            x, y = point(part.traced, part.truth, costs, profile.threshold)
            colour = RIGHT if profile.certified else TEST
            axes.plot(x / 1e6, 100 * y, "o", markersize=13, color=colour, markeredgecolor="#ffffff", zorder=3)
            axes.annotate(
                str(number),
                (x / 1e6, 100 * y),
                ha="center",
                va="center_baseline",
                fontsize=8.5,
                color="#ffffff",
                zorder=4,
            )
        axes.margins(y=0.12)
        axes.set_xlabel("mean cost, million MACs an image")
        axes.set_ylabel(f"{measure}, %")
        axes.grid()

    words = (
        f"{part.name}, {len(part.traced):,} samples, every threshold. Numbers are the profiles of the table: green "
        "where certified, orange where not."
    )
    title = f"{measure.capitalize()} against cost on {part.name}"
    return Drawing(f"tradeoff-{part.name}".replace(" ", "-"), words, _figure(title, draw))


def exits(profiles: Sequence[Profile]) -> Drawing:
    """Where samples leave, for each profile."""

    def draw(axes: Axes) -> None:
        begun = np.zeros(len(profiles))
        for stage in range(len(profiles[0].exits)):
            shares = np.array([100 * profile.exits[stage].value for profile in profiles])
            bars: Any = axes.barh(
                range(len(profiles)),
                shares,
                left=begun,
                height=0.62,
                color=STAGES[stage % len(STAGES)],
                label=f"stage {stage}",
            )
            texts = [f"{share:.0f} %" if share >= 9 else "" for share in shares]
            pale = stage % 3 == 0
            axes.bar_label(bars, texts, label_type="center", fontsize=9, color="#10202c" if pale else "#ffffff")
            begun = begun + shares
        axes.set_yticks(range(len(profiles)), [str(number + 1) for number in range(len(profiles))])
        axes.set_ylim(max(len(profiles), 3) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the samples, %")
        axes.set_ylabel("profile")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, -0.42), handlelength=1, borderaxespad=0)

    return Drawing("exits", "Share of the samples that leave at each stage.", _figure("Where samples leave", draw))


def energies(part: Samples, stage: int, words: tuple[str, str]) -> Drawing:
    """Energies after one stage, of right answers and of wrong ones."""
    values = part.traced.energies[:, stage]
    right = part.traced.classes[:, stage] == part.truth
    finite = np.isfinite(values)

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, max(1.0, float(values[finite].max(initial=1.0))), 41).tolist()
        for chosen, colour, label in ((right, RIGHT, words[0]), (~right, WRONG, words[1])):
            axes.hist(
                values[chosen & finite], edges, color=colour, alpha=0.35, label=f"{label} ({int(chosen.sum()):,})"
            )
            axes.hist(values[chosen & finite], edges, color=colour, histtype="step", linewidth=1.4)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.set_xlim(0, edges[-1])
        axes.set_xlabel("energy")
        axes.set_ylabel("samples")
        axes.legend(loc="upper left")

    name = _sum_name(stage)
    return Drawing(
        f"energies-{stage}", f"All samples of {part.name}, after {name}.", _figure(f"Energies after {name}", draw)
    )


def reliable(part: Samples, stage: int, found: Reliability) -> Drawing:
    """How often answers are right, against how sure the sum of stages is of them."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=QUIET, linewidth=1, linestyle="--", zorder=1)
        edges = np.arange(len(found.samples)) * 100 / len(found.samples)
        heights = np.nan_to_num(100 * found.right)
        strength = 0.25 + 0.6 * np.sqrt(found.samples / max(1, found.samples.max()))
        for left, height, alpha in zip(edges, heights, strength, strict=True):
            width = 100 / len(found.samples)
            axes.bar(left, height, width, align="edge", color=CALIBRATION, alpha=float(alpha), zorder=2)
        axes.plot(100 * found.sure, 100 * found.right, "o", color=TEST, markersize=4.5, zorder=3)
        axes.text(3, 93, f"ECE {100 * found.error:.2f} %", fontsize=11, fontweight="bold")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_xlabel("largest softmax, %")
        axes.set_ylabel("right, %")

    name = _sum_name(stage)
    words = f"{part.name}, after {name}. Stronger bars hold more samples; on the dashed line, a score is a probability."
    return Drawing(f"reliability-{stage}", words, _figure(f"Reliability of {name}", draw))


def _sum_name(stage: int) -> str:
    return "S0" if stage == 0 else f"S{stage} (S0 + R1)" if stage == 1 else f"S{stage} (S0 + ... + R{stage})"


def _figure(title: str, draw: Callable[[Axes], None]) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        axes.set_title(title)
        draw(axes)
    return figure


def svg(drawing: Drawing) -> str:
    """A drawing as an SVG element whose ink, rules and font are those of the page around it."""
    import matplotlib as mpl

    store = io.StringIO()
    with mpl.rc_context(STYLE):
        drawing.figure.savefig(store, format="svg", transparent=True, metadata={"Date": None})
    text = store.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z.]+\d*_\d+"', "", text)  # several drawings in one page would share them
    text = re.sub(r"font: (\w+ )?([\d.]+)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{drawing.name}"', text, count=1)


def png(drawings: Sequence[Drawing], folder: Path) -> None:
    """Write each drawing into a folder.

    Raises:
        RecipeError: they cannot be written.
    """
    import matplotlib as mpl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            with mpl.rc_context(STYLE):
                drawing.figure.savefig(folder / f"{drawing.name}.png", dpi=160)
    except OSError as error:
        raise RecipeError(f"cannot write the drawings to {folder}: {error}") from error
