"""The search: every combination once, its figures its own, and a front that nothing beats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import BundleError
from cascade.files import Quantiser
from export.build import Built
from export.derive import source_of
from export.search import Point, front, run_search, search, variants
from export.session import Session
from export.sources import Source, opened
from export.splits import load
from export.timing import BATCHES, stage_seconds
from tests.builders import onnx_model, random_inputs
from training.run import Run

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def source(student_alone: Run) -> Source:
    return opened(student_alone.folder, None, quiet=True)


@pytest.fixture(scope="module")
def points(source: Source) -> list[Point]:
    return search(source, quantisers=[Quantiser(), Quantiser(weight_bits=8)], rounds=3, quiet=True)


def test_every_precision_and_every_quantiser_is_tried_once(points: list[Point]) -> None:
    found = {(point.precisions, point.quantiser) for point in points}
    assert len(found) == len(points) == 4
    assert found == {
        (("fp32",), None),
        (("fp16",), None),
        (("int8",), Quantiser()),
        (("int8",), Quantiser(weight_bits=8)),
    }


def test_what_is_timed_takes_pixels_as_what_is_served_does(source: Source) -> None:
    found = variants(source, 0, [Quantiser(), Quantiser(in_float=("stem",))], rounds=1)
    takes = [Session(each.model, "stage").takes for each in found]
    assert [(each.dtype, each.shift is None) for each in takes] == [
        ("uint8", False),
        ("uint8", False),
        ("uint8", True),
        ("uint8", False),
    ]


def test_float_has_the_threshold_and_the_accuracy_of_its_bundle(source: Source, points: list[Point]) -> None:
    found = next(point for point in points if point.precisions == ("fp32",))
    assert source.bundle.manifest.calibration is not None
    assert found.accuracy == source.bundle.manifest.calibration.adaptive.accuracy
    assert found.threshold == source.bundle.manifest.exit.threshold
    assert found.reached == (1.0,)


def test_the_fastest_comes_first_and_is_on_the_front(points: list[Point]) -> None:
    times = [point.seconds[BATCHES[-1]] for point in points]
    assert times == sorted(times)
    assert BATCHES[-1] in points[0].front


def test_int8_stages_of_one_combination_share_their_quantiser(built: Built, folder: Path, tiny_run: Run) -> None:
    options = [Quantiser(images=50), Quantiser(images=50, weight_bits=8)]
    found = search(
        Source(source_of(folder), load(tiny_run.recipe.data, 50, quiet=True)), quantisers=options, rounds=1, quiet=True
    )
    assert len(found) == 2**3 + 2 * (3**3 - 2**3)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_what_is_on_the_front_and_something_beats_the_rest(points: list[tuple[int, int]]) -> None:
    best = front(points)

    def beaten(place: int) -> bool:
        cost, worth = points[place]
        return any((c <= cost and w > worth) or (c < cost and w >= worth) for c, w in points)

    assert best == {place for place in range(len(points)) if not beaten(place)}
    assert best


def test_a_search_leaves_a_table_a_document_and_a_picture(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run_search(source, tmp_path / "found", quantisers=[Quantiser()], quiet=True)
    document = json.loads((tmp_path / "found" / "search.json").read_text())
    assert {tuple(Point.model_validate(each).precisions) for each in document} == {("fp32",), ("fp16",), ("int8",)}
    assert (tmp_path / "found" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "of 3 combinations" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_picture_and_it_says_so(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_search(source, tmp_path, quantisers=[], quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.json"]
    assert "pip install 'rescade[plot]'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="cannot write"):
        run_search(source, tmp_path / "file" / "below", quantisers=[], quiet=True)


def test_a_larger_network_is_found_to_be_slower() -> None:
    contenders = {"small": onnx_model(width=2), "large": onnx_model(width=200)}
    found = stage_seconds(contenders, random_inputs(8), rounds=3)
    assert all(found["small"][batch] < found["large"][batch] for batch in BATCHES)
