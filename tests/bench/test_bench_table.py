"""The table on the screen says what the report says."""

from __future__ import annotations

import io
import re

from rich.console import Console

from bench.plan import Load
from bench.report import Document, Exit, Images, Ratios, Report, Times
from bench.table import heading, render

CLOSED = Load(mode="closed", connections=4, requests=10, duration_s=None)
OPEN = Load(mode="open", connections=4, requests=10, duration_s=None, rate_per_s=20.0, arrivals="poisson")
TIMES = Times(mean=3.0, p50=1.5, p90=2.5, p99=3.5, p99_9=4.5, max=5.5)
FULL = Report(
    name="full cascade",
    load=CLOSED,
    asked_threshold=1e9,
    asked_max_stage=None,
    model="pets",
    version="1",
    threshold=1e9,
    interrupted=False,
    requests=10,
    succeeded=8,
    failed=2,
    elapsed_s=4.0,
    throughput_per_s=2.0,
    latency_ms=TIMES,
    wait_ms=None,
    refusal_ms=None,
    errors={"503 overloaded": 2},
    error_examples={"503 overloaded": "later"},
    exits=(Exit(stage=0, count=2, share=0.25, accuracy=0.5), Exit(stage=1, count=6, share=0.75, accuracy=None)),
    accuracy=0.625,
    judged=8,
    mean_energy=0.8125,
    mean_macs=12_500_000,
    generator_cpu_share=0.25,
    versus_full=Ratios(throughput=1.0, p50=1.0, p99=None, macs=1.0, accuracy_points=-0.5),
)
NOTHING = FULL.model_copy(
    update={
        "name": "S0 alone",
        "asked_max_stage": 0,
        "model": None,
        "threshold": None,
        "interrupted": True,
        "latency_ms": None,
        "errors": {},
        "exits": (),
        "accuracy": None,
        "mean_energy": None,
        "mean_macs": None,
        "versus_full": None,
    }
)


def document(*runs: Report, classes: tuple[str, ...] = ("cat", "dog")) -> Document:
    images = Images(folder="pets/[test]", count=4, bytes=100, classes=classes)
    return Document(url="http://host", images=images, runs=runs)


def rows(*runs: Report) -> dict[str, list[str]]:
    """Label -> cells, as printed."""
    console = Console(file=io.StringIO(), width=200)
    console.print(render(document(*runs)))
    assert isinstance(console.file, io.StringIO)
    lines = [re.split(r"[│┃]", line)[1:-1] for line in console.file.getvalue().splitlines()]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines if line}


def test_every_figure_has_a_row() -> None:
    assert rows(FULL) == {
        "": ["4 at a time"],
        "model": ["pets 1"],
        "threshold": ["1e+09"],
        "load": ["closed"],
        "answered": ["8"],
        "time, s": ["4.00"],
        "throughput, images/s": ["2.0"],
        "latency mean, ms": ["3.00"],
        "latency p50, ms": ["1.50"],
        "latency p90, ms": ["2.50"],
        "latency p99, ms": ["3.50"],
        "latency p99.9, ms": ["4.50"],
        "latency max, ms": ["5.50"],
        "load generator, % of a core": ["25"],
        "left at stage 0, %": ["25.00"],
        "left at stage 1, %": ["75.00"],
        "accuracy, %": ["62.50"],
        "accuracy at stage 0, %": ["50.00"],
        "accuracy at stage 1, %": ["-"],
        "mean energy": ["0.8125"],
        "mean MACs an image": ["12.5 M"],
        "throughput / full": ["1.00"],
        "p50 / full": ["1.00"],
        "p99 / full": ["-"],
        "MACs / full": ["1.00"],
        "accuracy - full, points": ["-0.50"],
        "failed": ["2"],
        "failed: 503 overloaded": ["2"],
    }


def test_a_figure_that_one_run_lacks_is_a_dash() -> None:
    table = rows(NOTHING, FULL)
    assert table[""] == ["S0 alone", "full cascade"]
    assert table["last stage allowed"] == ["0", "-"]
    assert table["cut short"] == ["yes", "no"]
    for label in ("model", "threshold", "latency p99, ms", "left at stage 1, %", "accuracy, %", "mean MACs an image"):
        assert table[label][0] == "-"
        assert table[label][1] != "-"
    assert table["failed: 503 overloaded"] == ["0", "2"]


def test_rows_that_no_run_has_are_left_out() -> None:
    table = rows(NOTHING)
    assert not {"accuracy, %", "mean energy", "mean MACs an image", "throughput / full"} & set(table)


def test_an_open_loop_shows_its_rate_and_the_wait_to_be_sent() -> None:
    table = rows(FULL.model_copy(update={"load": OPEN, "wait_ms": TIMES}))
    assert table["load"] == ["open, 20/s poisson"]
    assert (table["waited to be sent p50, ms"], table["waited p99, ms"]) == (["1.50"], ["3.50"])


def test_the_heading_names_server_and_images() -> None:
    assert heading(document(FULL)) == "http://host, 4 images in 2 classes from pets/[test]"
    assert heading(document(FULL, classes=())) == "http://host, 4 images from pets/[test]"
