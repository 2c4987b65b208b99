"""`rescade export`, `verify` and `show`: what they print, and how they end."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from cascade import bundle
from cascade.manifest import Manifest
from export.__main__ import main
from export.build import Built
from export.show import tables
from tests.builders import tiny_bundle, write_tiny_bundle
from tests.cascade.documents import FIGURES, put
from tests.tiny_run import document
from training.run import Run

pytestmark = pytest.mark.train


def rescade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def shown(manifest: Manifest) -> str:
    console = Console(file=io.StringIO(), width=200)
    for table in tables(manifest):
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_export_writes_a_bundle_and_says_what_it_checked(student_alone: Run, tmp_path: Path) -> None:
    result = rescade("export", student_alone.folder, "--out", tmp_path / "bundle", "--name", "mine", "--quiet")
    assert result.exit_code == 0, result.output
    manifest = bundle.read(tmp_path / "bundle").manifest
    assert (manifest.name, manifest.version) == ("mine", "1")
    assert f"1 stages, threshold {manifest.exit.threshold:.6f}" in result.stdout
    assert "on 256 images, same classes and exits" in result.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the small run, as a file."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(document()))
    return path


def test_a_bundle_and_its_recipe_become_a_bundle_in_another_precision(
    built: Built, folder: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half"
    result = rescade("export", folder, "--recipe", recipe, "--precision", "fp16,fp32,fp32", "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    manifest = bundle.read(out).manifest
    assert [stage.precision for stage in manifest.stages] == ["fp16", "fp32", "fp32"]
    assert f"wrote {out}: fp16, fp32, fp32, threshold {manifest.exit.threshold:.6f}; the same class" in result.stdout


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_what_the_stages_of_a_bundle_take_can_be_said_beside_its_one_file(tmp_path: Path, kind: str) -> None:
    write_tiny_bundle(tmp_path / "source")
    result = rescade("export", tmp_path / "source", "--out", tmp_path / "made", "--fused", "--input", kind)
    assert result.exit_code == 0, result.output
    assert [stage.input.dtype for stage in bundle.read(tmp_path / "made").manifest.stages] == [kind] * 3


def test_a_run_can_be_exported_for_normalised_images(student_alone: Run, tmp_path: Path) -> None:
    result = rescade("export", student_alone.folder, "--input", "float32", "--out", tmp_path / "floats", "--quiet")
    assert result.exit_code == 0, result.output
    [stage] = bundle.read(tmp_path / "floats").manifest.stages
    assert (stage.input.name, stage.input.dtype, stage.input.shift) == ("images", "float32", None)


def test_a_run_can_be_exported_in_another_precision_at_once(student_alone: Run, tmp_path: Path) -> None:
    result = rescade("export", student_alone.folder, "--precision", "int8", "--out", tmp_path / "int8", "--quiet")
    assert result.exit_code == 0, result.output
    assert bundle.read(tmp_path / "int8").manifest.name == "tiny-int8"
    assert "7 bits, float: classifier" in shown(bundle.read_manifest(tmp_path / "int8"))


@pytest.mark.slow
def test_a_search_prints_its_front(student_alone: Run, tmp_path: Path) -> None:
    result = rescade("export", student_alone.folder, "--search", "--out", tmp_path / "found", "--quiet")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert (tmp_path / "found" / "search.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--recipe"),
        (("--recipe", "RECIPE", "--precision", "int4"), "a precision is fp32, fp16 or int8"),
        (("--recipe", "RECIPE", "--set", "data.split_seed=7"), "draws another D_v"),
    ],
    ids=["no recipe", "no precision", "other images"],
)
def test_a_bundle_that_cannot_be_derived_fails_with_one_line_and_status_1(
    built: Built, folder: Path, recipe: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    given = [str(recipe) if each == "RECIPE" else each for each in arguments]
    result = rescade("export", folder, "--out", tmp_path / "x", "--quiet", *given)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert words in result.stderr
    assert not (tmp_path / "x").exists()


def test_verify_says_that_a_bundle_is_whole(built: Built, folder: Path) -> None:
    result = rescade("verify", folder)
    assert result.exit_code == 0
    assert f"{folder} is whole: tiny 1, 3 stages" in result.stdout
    assert "costs counted" in result.stdout


def test_show_is_a_table_for_people(built: Built, folder: Path) -> None:
    result = rescade("show", folder)
    assert result.exit_code == 0
    for word in ("tiny 1", "residual", "stage2.onnx", "figures on dv", "figures on test", "adaptive"):
        assert word in result.stdout


def test_show_is_the_manifest_for_machines(built: Built, folder: Path) -> None:
    result = rescade("show", folder, "--json")
    assert bundle.parse(json.loads(result.stdout)) == built.manifest


def test_a_table_has_a_row_for_each_stage_and_says_how_samples_leave(built: Built) -> None:
    text = shown(built.manifest)
    rule = built.manifest.exit
    assert f"summed energy > {rule.threshold:.6f}, 0.9 of the energy of S_n on 288 samples held out of training" in text
    for stage in built.manifest.stages:
        assert f"{stage.params:,}" in text
        assert f"{stage.macs:,}" in text


def test_a_bundle_without_figures_can_be_shown() -> None:
    text = shown(tiny_bundle().manifest)
    assert "a fixed number" in text
    assert "figures on" not in text


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("exit.rule", {"name": "energy_ratio", "ratio": 1, "reference": "T", "samples": 9}, "also trained on"),
        (
            "preprocess",
            {**put("name", "x")["preprocess"], "resize": "short_side", "resize_to": 9, "crop": "center"},
            "short_side 9, crop center",
        ),
        ("test", {**FIGURES, "teacher": None}, "figures on dv"),
        ("stages.0.macs", 0, "figures"),
    ],
)
def test_whatever_a_manifest_may_say_can_be_shown(path: str, value: object, words: str) -> None:
    document = put(path, value)
    figures = {**FIGURES, "sums": [{**network, "macs": 0} for network in FIGURES["sums"]]}
    assert words in shown(bundle.parse({**document, "calibration": figures}))


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_folder_that_is_no_bundle_ends_with_one_line_and_status_1(tmp_path: Path, command: str) -> None:
    result = rescade(command, tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: manifest.json: cannot read")


def test_a_damaged_bundle_fails_verification_with_status_1(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "stage1.onnx").write_bytes(b"hello")
    result = rescade("verify", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "stages[1].sha256" in result.stderr


def test_a_run_that_is_none_fails_to_export_with_status_1(tmp_path: Path) -> None:
    result = rescade("export", tmp_path, "--out", tmp_path / "bundle", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path} is no run, it has no recipe.json")


@pytest.mark.parametrize("option", ["name", "version"])
def test_a_name_that_is_no_name_fails_to_export_with_status_1(student_alone: Run, tmp_path: Path, option: str) -> None:
    result = rescade("export", student_alone.folder, "--out", tmp_path / "bundle", f"--{option}", "no/name", "--quiet")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"Error: {option}: 'no/name' must be")


def test_a_bundle_gets_its_cascade_in_one_file_and_as_a_model_for_triton(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "source")
    options = ("--fused", "--pixels", "--triton", str(tmp_path / "models"))
    result = rescade("export", tmp_path / "source", "--out", tmp_path / "made", *options)
    assert result.exit_code == 0, result.output
    assert "all 3 stages, same logits, classes and exits" in result.stdout
    made = bundle.read(tmp_path / "made")
    assert (tmp_path / "models" / "tiny" / "1" / "model.onnx").read_bytes() == made.fused
    assert made.manifest.fused is not None
    assert made.manifest.fused.pixels


def test_a_run_becomes_a_bundle_with_its_cascade_in_one_file(student_alone: Run, tmp_path: Path) -> None:
    result = rescade(
        "export", student_alone.folder, "--out", tmp_path / "bundle", "--fused", "--name", "one", "--quiet"
    )
    assert result.exit_code == 0, result.output
    found = bundle.read(tmp_path / "bundle")
    assert (found.manifest.name, found.manifest.version) == ("one", "1")
    assert found.fused is not None
    assert rescade("verify", tmp_path / "bundle").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pixels"], "add --fused"),
        (["--triton", "models"], "add --fused"),
        (["--fused", "--search"], "makes no bundle"),
        (["--input", "float32", "--search"], "leave one out"),
    ],
)
def test_options_that_make_nothing_end_with_status_2(tmp_path: Path, options: list[str], message: str) -> None:
    write_tiny_bundle(tmp_path / "source")
    result = rescade("export", tmp_path / "source", "--out", tmp_path / "made", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["export", "nowhere", "--out", "x"],
        ["export", "."],
        ["verify"],
        ["verify", "nowhere"],
        ["show", "--x"],
    ],
)
def test_what_was_asked_wrongly_ends_with_status_2(arguments: list[str]) -> None:
    result = rescade(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
