"""`rescade profile`: bundles, runs and names side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cascade import bundle
from export.compare import profile_command
from export.timing import latencies
from tests.builders import onnx_model, write_tiny_bundle
from training.run import Run

pytestmark = pytest.mark.train
ROOT = Path(__file__).parents[2]


def rescade_profile(*arguments: str | Path) -> Result:
    return CliRunner().invoke(profile_command, [str(argument) for argument in arguments])


def documents(*arguments: str | Path) -> list[dict[str, Any]]:
    result = rescade_profile(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["networks"]
    return found


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-int8"])
def test_the_macs_of_a_shipped_bundle_are_those_of_its_manifest(name: str) -> None:
    found = documents(ROOT / "bundles" / name, "--no-time")
    assert [each["macs"] for each in found] == bundle.read_manifest(ROOT / "bundles" / name).costs()


def test_a_run_is_its_teacher_and_its_stages(tiny_run: Run) -> None:
    found = documents(tiny_run.folder, "--no-time")
    names = [each["name"].rpartition(" ")[2] for each in found]
    assert names == ["teacher", *tiny_run.stages()]


def test_a_name_is_a_fresh_network_of_the_size_and_classes_that_are_asked_for() -> None:
    [found] = documents("resnet8_0.25_a", "--size", "8", "--classes", "5", "--no-time")
    first, *_, last = found["layers"]
    assert first["live_bytes"] == 4 * 8 * 8 * (3 + 4)
    assert last["macs"] == 16 * 5


def test_networks_stand_side_by_side_with_their_ratio(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny", stages=1)
    result = rescade_profile(tmp_path / "tiny", tmp_path / "tiny", "--no-time")
    assert result.exit_code == 0
    [row] = [line for line in result.stdout.splitlines() if "MACs" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["MACs", "11,904", "11,904", "1"]


def test_every_layer_is_shown_on_request(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny", stages=1)
    result = rescade_profile(tmp_path / "tiny", "--no-time", "--layers")
    for word in ("Conv", "Relu", "Flatten", "Gemm"):
        assert word in result.stdout


def test_networks_are_timed_at_the_batch_sizes_that_are_asked_for(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny", stages=2)
    found = documents(tmp_path / "tiny", "--batch", "1,4", "--rounds", "3")
    assert [list(each["seconds_by_batch"]) for each in found] == [["1", "4"], ["1", "4"]]
    assert all(0 < seconds < 1 for each in found for seconds in each["seconds_by_batch"].values())
    assert "ms at batch 4" in rescade_profile(tmp_path / "tiny", "--batch", "4", "--rounds", "1").stdout


def test_a_network_on_the_grid_of_the_pixels_begins_with_their_bytes() -> None:
    first, _ = documents(ROOT / "bundles" / "cifar10-int8", "--batch", "1", "--rounds", "1")
    assert first["layers"][0]["kind"] == "Pad"
    assert first["layers"][0]["live_bytes"] == 32 * 32 * (3 + 4)
    assert first["seconds_by_batch"]["1"] > 0


def test_a_larger_network_takes_longer() -> None:
    models = [onnx_model(size=8), onnx_model(size=64, width=32)]
    small, large = latencies(models, [8, 64], [8], rounds=5)
    assert small[0] < large[0]


@pytest.mark.parametrize("source", ["no_such_network", "nowhere/at/all"])
def test_what_is_nothing_known_ends_with_status_1(source: str) -> None:
    result = rescade_profile(source, "--no-time")
    assert result.exit_code == 1
    assert "no network is called" in result.output


def test_a_broken_bundle_ends_with_status_1(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    (tmp_path / "tiny" / "stage1.onnx").write_bytes(b"cut")
    result = rescade_profile(tmp_path / "tiny")
    assert (result.exit_code, "stages[1].sha256" in result.output) == (1, True)


@pytest.mark.parametrize("batches", ["none", "1,,2", "0"])
def test_batch_sizes_that_are_none_end_with_status_2(batches: str) -> None:
    assert rescade_profile("resnet8_a", "--batch", batches).exit_code == 2
