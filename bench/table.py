"""The report for a person: one column a run, one row a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.report import Document, Exit, Report, macs_in_words

Cell = Callable[[Report], str]
Rows = list[tuple[str, Cell]]

NONE = "-"


def render(document: Document) -> Table:
    """Lay out everything that was measured.

    Args:
        document: with at least one run.
    """
    runs = document.runs
    table = Table("")
    for name in _headings(runs):
        table.add_column(escape(name), justify="right")
    for section in (_settings(runs), _speed(runs), _outcome(runs), _versus(runs), _failures(runs)):
        for label, cell in section:
            table.add_row(escape(label), *(Text(cell(run)) for run in runs))
        table.add_section()
    return table


def heading(document: Document) -> str:
    """Say in one line what was asked with what."""
    images = document.images
    classes = f" in {len(images.classes)} classes" if images.classes else ""
    return f"{document.url}, {images.count} images{classes} from {images.folder}"


def _headings(runs: Sequence[Report]) -> list[str]:
    """The variation's name, where there are several; else the load."""
    if len({run.name for run in runs}) > 1:
        return [run.name for run in runs]
    return [f"{run.load.connections} at a time" for run in runs]


def _settings(runs: Sequence[Report]) -> Rows:
    rows: Rows = [
        ("model", lambda run: f"{run.model} {run.version}" if run.model else NONE),
        ("threshold", lambda run: _number(run.threshold, "{:g}")),
        ("load", lambda run: f"open, {run.load.rate_per_s:g}/s {run.load.arrivals}" if _is_open(run) else "closed"),
    ]
    if any(run.asked_max_stage is not None for run in runs):
        rows.append(("last stage allowed", lambda run: _number(run.asked_max_stage, "{}")))
    if any(run.interrupted for run in runs):
        rows.append(("cut short", lambda run: "yes" if run.interrupted else "no"))
    return rows


def _speed(runs: Sequence[Report]) -> Rows:
    rows: Rows = [
        ("answered", lambda run: f"{run.succeeded}"),
        ("time, s", lambda run: f"{run.elapsed_s:.2f}"),
        ("throughput, images/s", lambda run: f"{run.throughput_per_s:.1f}"),
    ]
    for label, key in (("mean", "mean"), ("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p99_9")):
        rows.append((f"latency {label}, ms", _time("latency_ms", key)))
    rows.append(("latency max, ms", _time("latency_ms", "max")))
    if any(_is_open(run) for run in runs):
        rows += [("waited to be sent p50, ms", _time("wait_ms", "p50")), ("waited p99, ms", _time("wait_ms", "p99"))]
    if any(run.refusal_ms for run in runs):
        rows += [("refused p50, ms", _time("refusal_ms", "p50")), ("refused p99, ms", _time("refusal_ms", "p99"))]
    rows.append(("load generator, % of a core", lambda run: f"{100 * run.generator_cpu_share:.0f}"))
    return rows


def _outcome(runs: Sequence[Report]) -> Rows:
    stages = max((len(run.exits) for run in runs), default=0)
    rows: Rows = [(f"left at stage {stage}, %", _exit(stage, lambda item: item.share)) for stage in range(stages)]
    if any(run.accuracy is not None for run in runs):
        rows.append(("accuracy, %", lambda run: _percent(run.accuracy)))
        rows += [(f"accuracy at stage {stage}, %", _exit(stage, lambda item: item.accuracy)) for stage in range(stages)]
    if any(run.mean_energy is not None for run in runs):
        rows.append(("mean energy", lambda run: _number(run.mean_energy, "{:.4f}")))
    if any(run.mean_macs is not None for run in runs):
        rows.append(("mean MACs an image", lambda run: NONE if run.mean_macs is None else macs_in_words(run.mean_macs)))
    return rows


def _versus(runs: Sequence[Report]) -> Rows:
    if all(run.versus_full is None for run in runs):
        return []
    return [
        ("throughput / full", _ratio("throughput")),
        ("p50 / full", _ratio("p50")),
        ("p99 / full", _ratio("p99")),
        ("MACs / full", _ratio("macs")),
        ("accuracy - full, points", _ratio("accuracy_points", "{:+.2f}")),
    ]


def _failures(runs: Sequence[Report]) -> Rows:
    kinds = list(dict.fromkeys(kind for run in runs for kind in run.errors))
    rows: Rows = [("failed", lambda run: f"{run.failed}")]
    return rows + [(f"failed: {kind}", _failed(kind)) for kind in kinds]


def _failed(kind: str) -> Cell:
    return lambda run: f"{run.errors.get(kind, 0)}"


def _time(distribution: str, key: str) -> Cell:
    return lambda run: _number(getattr(getattr(run, distribution), key, None), "{:.2f}")


def _ratio(key: str, form: str = "{:.2f}") -> Cell:
    return lambda run: _number(getattr(run.versus_full, key, None), form)


def _exit(stage: int, figure: Callable[[Exit], float | None]) -> Cell:
    return lambda run: _percent(figure(run.exits[stage])) if stage < len(run.exits) else NONE


def _is_open(run: Report) -> bool:
    return run.load.mode == "open"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)
