"""The picture: its curve is the latencies, its file is a picture, its absence is explained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import plot
from bench.errors import BenchError
from tests.bench.test_bench_table import FULL, NOTHING, document

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the `plot` extra")


def test_a_curve_stands_on_a_scale_of_nines() -> None:
    nines, milliseconds = plot.curve([0.2, 0.1, 0.4, 0.3, 0.5])
    assert milliseconds == pytest.approx([100, 200, 300, 400, 500])
    assert nines == pytest.approx([-np.log10(share) for share in (0.9, 0.7, 0.5, 0.3, 0.1)])


@given(st.integers(plot.MAX_POINTS + 1, 50_000))
def test_a_long_curve_is_thinned_and_keeps_its_ends(count: int) -> None:
    nines, milliseconds = plot.curve(list(np.arange(count) / 1e3))
    assert len(nines) == len(milliseconds) <= plot.MAX_POINTS + 1
    assert (milliseconds[0], milliseconds[-1]) == pytest.approx((0, count - 1))
    assert (np.diff(nines) > 0).all()
    assert nines[-1] == pytest.approx(np.log10(2 * count))


def test_runs_are_told_apart_by_name_or_by_load() -> None:
    assert plot.labels([FULL]) == ["full cascade"]
    assert plot.labels([NOTHING, FULL]) == ["S0 alone", "full cascade"]
    other = FULL.model_copy(update={"load": FULL.load.model_copy(update={"connections": 9})})
    assert plot.labels([FULL, other]) == ["4 at a time", "9 at a time"]


@needs_matplotlib
@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_plot_is_written_in_the_format_of_its_suffix(tmp_path: Path, name: str, begins: bytes) -> None:
    plot.draw(document(NOTHING, FULL), [[], [0.01, 0.02, 0.5]], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


@needs_matplotlib
def test_a_plot_shows_every_run_and_its_figures(tmp_path: Path) -> None:
    other = FULL.model_copy(update={"load": FULL.load.model_copy(update={"connections": 9})})
    plot.draw(document(FULL, other), [[0.01], [0.02]], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in ("pets 1", "4 at a time", "9 at a time", "62.5 % right", "12.5 M MACs", "stage 1", "75 %", "p99"):
        assert words in text


@needs_matplotlib
def test_a_run_without_an_answer_can_be_drawn(tmp_path: Path) -> None:
    plot.draw(document(NOTHING), [[]], tmp_path / "a.svg")
    assert "no answer" in (tmp_path / "a.svg").read_text()


@needs_matplotlib
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"gone.a\.png"):
        plot.draw(document(FULL), [[0.01]], tmp_path / "gone" / "a.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"rescade\[plot\]"):
        plot.require()
