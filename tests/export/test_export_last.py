"""The last step of a recipe: `rescade train` makes the bundle, and makes it again only if it has to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cascade import bundle
from rescade import main
from tests.tiny_run import document
from training import checkpoint, models
from training.run import open_run

pytestmark = pytest.mark.train

QUICK: dict[str, Any] = {
    "teacher": None,
    "student": {"model": "resnet8_0.125_a", "method": {"name": "vanilla"}},
    "residual": None,
    "schedule": {"epochs": 1, "batch_size": 256, "policy": "cosine"},
}


def train(place: Path, **export: Any) -> str:
    """Train into `place/run` by the command; what it printed."""
    (place / "recipe.yaml").write_text(yaml.safe_dump({**document(**QUICK), "export": export}))
    arguments = ["train", str(place / "recipe.yaml"), "--out", str(place / "run"), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_recipe_that_exports_ends_in_a_bundle_which_stays_while_nothing_changed(tmp_path: Path) -> None:
    assert "wrote" in train(tmp_path, version="2")
    folder = tmp_path / "run" / "bundle"
    made = bundle.read(folder).manifest
    assert (made.name, made.version, made.provenance.recipe) == (
        "tiny",
        "2",
        open_run(tmp_path / "run").recipe.run_id(),
    )
    assert train(tmp_path, version="2") == f"{folder} stays: nothing before it changed\n"
    assert bundle.read(folder).manifest == made


def test_another_export_makes_another_bundle_and_trains_nothing(tmp_path: Path) -> None:
    train(tmp_path)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "wrote" in train(tmp_path, folder="small", precision="fp16", fused=True)
    manifest = bundle.read(tmp_path / "run" / "small").manifest
    assert [stage.precision for stage in manifest.stages] == ["fp16"]
    assert manifest.fused is not None
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_bundle_of_other_weights_or_a_broken_one_is_made_anew(tmp_path: Path) -> None:
    train(tmp_path)
    run, folder = open_run(tmp_path / "run"), tmp_path / "run" / "bundle"
    before = (folder / "stage0.onnx").read_bytes()
    (folder / "stage0.onnx").write_bytes(b"broken")
    assert "wrote" in train(tmp_path)
    assert (folder / "stage0.onnx").read_bytes() == before
    net = models.build("resnet8_0.125_a", 10, 8)
    checkpoint.save_network(run.step("student") / "network.safetensors", net, "resnet8_0.125_a", 10, 8)
    assert "wrote" in train(tmp_path)
    assert (folder / "stage0.onnx").read_bytes() != before


def test_a_bundle_that_cannot_be_made_ends_with_one_line(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "run" / "other").mkdir()
    (tmp_path / "run" / "other" / "mine.txt").write_text("not a bundle's")
    recipe = {**document(**QUICK), "export": {"folder": "other"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert json.loads((tmp_path / "run" / "steps" / "export" / "step.json").read_text())["key"]
