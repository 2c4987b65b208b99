"""A table of good manifests and a table of bad ones, each with the field that the error names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cascade.bundle import MAX_MANIFEST_BYTES, parse, read_manifest
from cascade.errors import BundleError
from cascade.manifest import Manifest, Preprocess
from tests.cascade.documents import FIGURES, FUSED, NETWORK, PROFILE, Document, document, drop, put

PIXELS = {"name": "pixels", "shape": [None, 3, 8, 8], "dtype": "uint8", "shift": "shift"}
NAN, INFINITY = float("nan"), float("inf")
SHORT_SIDE = {"size": 8, "resize": "short_side", "resize_to": 9, "crop": "center", "mean": [0, 0, 0], "std": [1, 1, 1]}


def with_stages(count: int) -> Document:
    stage = document()["stages"][0]
    roles = ["student", *["residual"] * (count - 1)]
    return put("stages", [{**stage, "file": f"{place}.onnx", "role": role} for place, role in enumerate(roles)])


def with_classes(count: int) -> Document:
    result = with_stages(1)
    result["labels"] = [f"class {place}" for place in range(count)]
    result["stages"][0]["output"]["shape"] = [None, count]
    return result


def swapped_stages() -> Document:
    stages = document()["stages"]
    return put("stages", [stages[1], stages[0], stages[2]])


GOOD: dict[str, Document] = {
    "as export writes it": document(),
    "the longest cascade": with_stages(64),
    "a student alone": with_stages(1),
    "two classes": with_classes(2),
    "a file in a subfolder": put("stages.0.file", "onnx/first.onnx"),
    "a file that starts with two dots": put("stages.0.file", "..first.onnx"),
    "accumulated energies": put("exit.definition", "accumulated"),
    "a threshold over one": put("exit.threshold", 1.5),
    "short side and centre crop": put("preprocess", SHORT_SIDE),
    "bicubic": put("preprocess.interpolation", "bicubic"),
    "labels in any script": put("labels", ["猫", "собака", "🐟", "naïve"]),
    "figures": put("test", FIGURES),
    "figures without a teacher": put("calibration", {**FIGURES, "teacher": None}),
    "a fused file": put("fused", FUSED),
    "a fused file that takes pixels": put("fused", {**FUSED, "pixels": True}),
    "a fused file of numbers": put("fused", {**FUSED, "outputs": [{"name": "n", "shape": [], "dtype": "int32"}]}),
    "no fused file": put("fused", None),
    "written before there were fused files": drop("fused"),
    "a profile": put("profiles", [PROFILE]),
    "a profile with a threshold a stage": put("profiles", [{**PROFILE, "thresholds": [0.8, 0.9]}]),
    "no profiles": drop("profiles"),
    "the format before this one": put("format_version", 1),
    "defaults left out": drop("stages.0.input.dtype"),
    "graphs that take pixels": put("stages.0.input", PIXELS),
    "written before graphs took pixels": drop("stages.0.input.shift"),
    "quantised on the grid of the pixels": put("stages.0.input", {**PIXELS, "shift": None}),
}

BAD: dict[str, tuple[Document, str]] = {
    "an unknown key": (put("colour", "red"), "colour"),
    "an unknown key of a stage": (put("stages.1.colour", "red"), "stages[1].colour"),
    "two profiles of one name": (put("profiles", [PROFILE, PROFILE]), "profiles[1].name"),
    "thresholds for other stages": (put("profiles", [{**PROFILE, "thresholds": [0.1] * 3}]), "profiles[0].thresholds"),
    "exits of other stages": (put("profiles", [{**PROFILE, "exits": []}]), "profiles[0].exits"),
    "a profile without certainty": (put("profiles", [{**PROFILE, "certified": None}]), "profiles[0].certified"),
    "no name": (drop("name"), "name"),
    "no exit rule": (drop("exit"), "exit"),
    "no digest": (drop("stages.2.sha256"), "stages[2].sha256"),
    "a name that is a path": (put("name", "../cascade"), "name"),
    "a name that ends in a line break": (put("name", "cascade\n"), "name"),
    "a number for a name": (put("name", 7), "name"),
    "half a character in a name": (put("name", "\ud800"), "manifest.json"),
    "a format from the future": (put("format_version", 3), "format_version"),
    "a format from the past": (put("format_version", 0), "format_version"),
    "no format version": (drop("format_version"), "format_version"),
    "a format version that is true": (put("format_version", True), "format_version"),
    "a format version in quotes": (put("format_version", "1"), "format_version"),
    "a format version that is null": (put("format_version", None), "format_version"),
    "a format version that is a list": (put("format_version", [1]), "format_version"),
    "no stages": (put("stages", []), "stages"),
    "too many stages": (with_stages(65), "stages"),
    "stages that are no list": (put("stages", "stage0.onnx"), "stages"),
    "swapped stages": (swapped_stages(), "stages[0].role"),
    "a second student": (put("stages.2.role", "student"), "stages[2].role"),
    "an unknown role": (put("stages.1.role", "teacher"), "stages[1].role"),
    "one file for two stages": (put("stages.1.file", "stage0.onnx"), "stages[1].file"),
    "a digest in capitals": (put("stages.0.sha256", "A" * 64), "stages[0].sha256"),
    "a digest that is too short": (put("stages.0.sha256", "a" * 63), "stages[0].sha256"),
    "negative parameters": (put("stages.0.params", -1), "stages[0].params"),
    "half a multiply-accumulate": (put("stages.0.macs", 0.5), "stages[0].macs"),
    "an input of another size": (put("stages.1.input.shape", [None, 3, 9, 9]), "stages[1].input.shape"),
    "a fixed batch": (put("stages.0.input.shape", [1, 3, 8, 8]), "stages[0].input.shape"),
    "one channel": (put("stages.0.input.shape", [None, 1, 8, 8]), "stages[0].input.shape"),
    "an empty shape": (put("stages.0.input.shape", []), "stages[0].input.shape"),
    "a side of nothing": (put("stages.0.input.shape", [None, 3, 0, 8]), "stages[0].input.shape[2]"),
    "an output of other classes": (put("stages.2.output.shape", [None, 5]), "stages[2].output.shape"),
    "a nameless output": (put("stages.0.output.name", ""), "stages[0].output.name"),
    "a shift without pixels": (put("stages.0.input", {**PIXELS, "dtype": "float32"}), "stages[0].input"),
    "a shift that is the pixels": (put("stages.0.input", {**PIXELS, "shift": "pixels"}), "stages[0].input"),
    "logits in uint8": (put("stages.0.output.dtype", "uint8"), "stages[0].output.dtype"),
    "half precision": (put("stages.0.input.dtype", "float16"), "stages[0].input.dtype"),
    "a precision nobody knows": (put("stages.0.precision", "int4"), "stages[0].precision"),
    "a percentile without its method": (put("provenance.quantiser", {"percentile": 99.9}), "provenance.quantiser"),
    "a method without its percentile": (put("provenance.quantiser", {"method": "percentile"}), "provenance.quantiser"),
    "weights of four bits": (put("provenance.quantiser", {"weight_bits": 4}), "provenance.quantiser.weight_bits"),
    "a negative std": (put("preprocess.std", [0.2, -0.2, 0.2]), "preprocess.std[1]"),
    "a std of zero": (put("preprocess.std.0", 0), "preprocess.std[0]"),
    "two means": (put("preprocess.mean", [0.5, 0.5]), "preprocess.mean[2]"),
    "a mean that is NaN": (put("preprocess.mean.2", NAN), "preprocess.mean[2]"),
    "a size of zero": (put("preprocess.size", 0), "preprocess.size"),
    "a size beyond reason": (put("preprocess.size", 5000), "preprocess.size"),
    "grey": (put("preprocess.channels", "L"), "preprocess.channels"),
    "a crop after a stretch": (put("preprocess.crop", "center"), "preprocess"),
    "a length after a stretch": (put("preprocess.resize_to", 9), "preprocess"),
    "a short side of no length": (put("preprocess", {**SHORT_SIDE, "resize_to": None}), "preprocess"),
    "a short side under the crop": (put("preprocess", {**SHORT_SIDE, "resize_to": 7}), "preprocess"),
    "a short side without a crop": (put("preprocess", {**SHORT_SIDE, "crop": "none"}), "preprocess"),
    "one class": (with_classes(1), "labels"),
    "more labels than logits": (put("labels", list("abcde")), "stages[0].output.shape"),
    "a threshold that is NaN": (put("exit.threshold", NAN), "exit.threshold"),
    "a threshold without end": (put("exit.threshold", INFINITY), "exit.threshold"),
    "no threshold": (drop("exit.threshold"), "exit.threshold"),
    "a score nobody knows": (put("exit.score", "margin"), "exit.score"),
    "a definition nobody knows": (put("exit.definition", "averaged"), "exit.definition"),
    "a rule nobody knows": (put("exit.rule.name", "guess"), "exit.rule.name"),
    "a ratio of zero": (put("exit.rule", {"name": "energy_ratio", "ratio": 0}), "exit.rule.ratio"),
    "an accuracy over one": (
        put("test", {**FIGURES, "adaptive": {**NETWORK, "accuracy": 97}}),
        "test.adaptive.accuracy",
    ),
    "figures of no samples": (put("test", {**FIGURES, "samples": 0}), "test.samples"),
    "figures without sums": (put("test", {**FIGURES, "sums": []}), "test.sums"),
    "figures of another cascade": (put("calibration", {**FIGURES, "sums": [NETWORK]}), "calibration.sums"),
    "exits of another cascade": (put("test", {**FIGURES, "exits": [0.5, 0.5]}), "test.exits"),
    "a fused file of a stage's name": (put("fused", {**FUSED, "file": "stage1.onnx"}), "fused.file"),
    "a fused file outside": (put("fused", {**FUSED, "file": "../cascade.onnx"}), "fused.file"),
    "a fused file without a digest": (put("fused", {**FUSED, "sha256": ""}), "fused.sha256"),
    "a fused file of an unknown type": (
        put("fused", {**FUSED, "inputs": [{"name": "x", "shape": [], "dtype": "text"}]}),
        "fused.inputs[0].dtype",
    ),
    "a fused file that would have to crop": (
        {**put("fused", {**FUSED, "pixels": True}), "preprocess": SHORT_SIDE},
        "fused.pixels",
    ),
    "no provenance": (drop("provenance"), "provenance"),
    "versions that are no text": (put("provenance.versions", {"torch": 2}), "provenance.versions.torch"),
}
ESCAPES = [
    "../x",
    "/abs",
    "a/../../x",
    "a/../x",
    "..",
    ".",
    "",
    "./stage0.onnx",
    "a//b",
    "a/",
    "C:\\x",
    "C:x",
    "..\\x",
    "a\\b",
    "stage0.onnx\0.png",
]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_manifest_is_read_and_written_without_a_change(name: str) -> None:
    manifest = parse(GOOD[name])
    assert parse(json.loads(json.dumps(manifest.document()))) == manifest


@pytest.mark.parametrize("name", BAD)
def test_a_bad_manifest_is_refused_by_the_field_that_is_wrong(name: str) -> None:
    spoilt, field = BAD[name]
    with pytest.raises(BundleError) as caught:
        parse(spoilt)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("file", ESCAPES)
def test_a_file_name_that_could_leave_the_bundle_is_refused(file: str) -> None:
    with pytest.raises(BundleError, match="inside the bundle") as caught:
        parse(put("stages.1.file", file))
    assert caught.value.field == "stages[1].file"


@pytest.mark.parametrize("value", [None, 1, "manifest", [], True])
def test_json_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(BundleError, match="must be a JSON object"):
        parse(value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"not json", b"9" * 10_000, b"[" * 100_000, b'{"x":' * 100_000],
    ids=["nothing", "half", "no text", "words", "a huge number", "lists without end", "objects without end"],
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match="is not JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["format_version", "colour"])
def test_no_depth_of_nesting_is_more_than_a_bundle_error(tmp_path: Path, key: str) -> None:
    for depth in [10, 100, *range(850, 1010), 3000]:
        text = f'{{"format_version": 1, "{key}": {"[" * depth}{"]" * depth}}}'
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(BundleError):
            read_manifest(tmp_path)


def test_values_nested_without_end_are_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(BundleError, match="nested too deeply"):
        parse({"format_version": 1, "colour": nested})


def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="larger than"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("folder", ["nothing here", "a file", "an empty folder", "a folder for a manifest"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "a folder for a manifest" / "manifest.json").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"a bundle\?"):
        read_manifest(tmp_path / folder)


def test_a_manifest_cannot_be_changed() -> None:
    manifest = parse(document())
    with pytest.raises(ValidationError, match="frozen"):
        manifest.exit.threshold = 0.1  # type: ignore[misc]


def test_costs_are_the_macs_of_each_stage_in_order() -> None:
    assert parse(document()).costs() == [10_000, 20_000, 30_000]


@pytest.mark.parametrize(("thresholds", "threshold"), [([0.8], 0.8), ([0.8, 0.9], (0.8, 0.9))])
def test_a_profile_gives_one_threshold_or_one_a_stage(thresholds: list[float], threshold: object) -> None:
    manifest = Manifest.model_validate_json(json.dumps(put("profiles", [{**PROFILE, "thresholds": thresholds}])))
    assert manifest.profiles[0].threshold == threshold


def test_a_document_holds_plain_json_values_only() -> None:
    manifest = parse(GOOD["figures"])
    assert Manifest.model_validate_json(json.dumps(manifest.document(), allow_nan=False)) == manifest


def test_preprocessing_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValidationError, match="resize_to of at least size"):
        Preprocess(size=8, resize="short_side", crop="center", mean=(0, 0, 0), std=(1, 1, 1))
