"""A bundle gets its cascade in one file, which is held against the stages whenever it is made or verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.files import Fused
from cascade.pixels import normalise
from export.fused import fuse
from export.onefile import FILE, export, fused_bundle
from export.parts import load
from export.session import opened, sessions
from export.staged import staged
from export.verify import verify
from export.whole import Whole, between
from tests.builders import onnx_model, tiny_bundle, write_tiny_bundle
from tests.serving import ROOT

pytestmark = pytest.mark.train


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    """A bundle with its cascade in one file, on disk at `tmp_path / "made"`."""
    write_tiny_bundle(tmp_path / "source")
    return export(tmp_path / "source", tmp_path / "made", pixels=False)


def test_the_new_bundle_is_the_old_one_and_a_file(made: Bundle, tmp_path: Path) -> None:
    source = bundle.read(tmp_path / "source")
    assert bundle.read(tmp_path / "made") == made
    assert made.models == source.models
    assert made.manifest.model_copy(update={"fused": None}) == source.manifest
    assert (tmp_path / "made" / FILE).read_bytes() == made.fused


def test_the_manifest_says_what_the_file_takes_and_gives(made: Bundle) -> None:
    fused = made.manifest.fused
    assert fused is not None
    assert [(value.name, value.dtype, value.shape) for value in (*fused.inputs, *fused.outputs)] == [
        ("images", "float32", (None, 3, 8, 8)),
        ("threshold", "float64", (None, None)),
        ("logits", "float32", (None, 4)),
        ("label", "int64", (None,)),
        ("exit_stage", "int32", (None,)),
        ("energy", "float64", (None,)),
    ]
    assert not fused.pixels


def test_the_file_alone_says_its_labels_and_its_threshold(made: Bundle) -> None:
    assert made.fused is not None
    notes = opened(made.fused, "fused").get_modelmeta().custom_metadata_map
    assert json.loads(notes["labels"]) == list(made.manifest.labels)
    assert json.loads(notes["threshold"]) == made.manifest.exit.threshold
    assert (notes["name"], notes["version"], notes["definition"]) == ("tiny", "1", "summed")


def test_the_same_bundle_gives_the_same_file(made: Bundle) -> None:
    assert fused_bundle(tiny_bundle()) == made


def test_a_bundle_can_be_given_its_file_in_place_and_again(made: Bundle, tmp_path: Path) -> None:
    again = export(tmp_path / "made", tmp_path / "made", pixels=True, name="other", version="2")
    assert (again.manifest.name, again.manifest.version) == ("other", "2")
    assert again.manifest.fused is not None
    assert again.manifest.fused.pixels
    assert again.manifest.fused.inputs[0].shape == (None, None, None, 3)
    assert bundle.read(tmp_path / "made") == again


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("pixels", [False, True])
def test_a_bundle_with_its_cascade_in_one_file_is_verified(tmp_path: Path, stages: int, *, pixels: bool) -> None:
    write_tiny_bundle(tmp_path / "bundle", stages=stages, definition="accumulated")
    made = export(tmp_path / "bundle", tmp_path / "bundle", pixels=pixels)
    assert verify(tmp_path / "bundle").manifest == made.manifest


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-int8"])
@pytest.mark.parametrize("pixels", [False, True])
def test_a_shipped_cascade_in_one_file_is_its_stages_to_the_last_bit(name: str, *, pixels: bool) -> None:
    read = bundle.read(ROOT / "bundles" / name)
    made, rule = fused_bundle(read, pixels=pixels), read.manifest.preprocess
    assert made.fused is not None
    whole, stages = Whole(made.fused), sessions(read.models, rule)
    raw = np.random.default_rng(0).integers(0, 256, (17, 3, rule.size, rule.size), np.uint8)
    given = np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if pixels else normalise(raw, rule)
    for threshold in (-1.0, 0.3, 0.5, 0.7, 0.9, 2.0):
        for size in (1, 2, 17):
            expected = staged(stages, normalise(raw[:size], rule), threshold, read.manifest.exit.definition)
            found = whole.run(given[:size], threshold)
            for part in ("logits", "classes", "stages", "energies"):
                assert np.array_equal(getattr(found, part), getattr(expected, part))


@pytest.mark.parametrize("pixels", [False, True])
def test_the_reference_implementation_of_onnx_runs_a_quantised_cascade(*, pixels: bool) -> None:
    from onnx.reference import ReferenceEvaluator

    read = bundle.read(ROOT / "bundles" / "cifar10-int8")
    made, rule = fused_bundle(read, pixels=pixels), read.manifest.preprocess
    assert made.fused is not None
    raw = np.random.default_rng(0).integers(0, 256, (4, 3, rule.size, rule.size), np.uint8)
    given = np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if pixels else normalise(raw, rule)
    threshold = np.array([[read.manifest.exit.threshold]])
    expected = Whole(made.fused).run(given, float(threshold.item()))
    reference = ReferenceEvaluator(onnx.load_model_from_string(made.fused))
    found: list[Any] = list(reference.run(None, {"images": given, "threshold": threshold}))
    assert np.allclose(found[0], expected.logits, rtol=0, atol=1e-6)
    assert found[2].tolist() == expected.stages.tolist()
    assert set(expected.stages.tolist()) == {0, 1}


def test_a_quantised_cascade_of_pixels_takes_its_bytes_as_they_are() -> None:
    made = fused_bundle(bundle.read(ROOT / "bundles" / "cifar10-int8"), pixels=True)
    assert made.fused is not None
    outer = onnx.load_model_from_string(made.fused).graph
    branches = [helper.get_node_attr_value(node, "then_branch") for node in outer.node if node.op_type == "If"]
    kinds = [{node.op_type for node in graph.node} for graph in (outer, *branches)]
    assert [("Pad" in each, "Mul" in each) for each in kinds] == [(True, False)] * 2


def with_file(folder: Path, model: bytes, **changes: object) -> Path:
    """A bundle on disk that has `model` for its one file."""
    source = fused_bundle(tiny_bundle())
    assert source.manifest.fused is not None
    told = source.manifest.fused.model_dump() | {"sha256": bundle.sha256(model)} | changes
    manifest = source.manifest.model_copy(update={"fused": Fused.model_validate(told)})
    bundle.write(folder, manifest, Bundle(manifest, source.models, source.golden, model).files())
    return folder


def fused(*seeds: int, classes: int = 4) -> bytes:
    model = fuse([load(onnx_model(seed, classes=classes), "stage") for seed in seeds], "summed")
    data: bytes = model.SerializeToString()
    return data


def spoilt(output: str, *last: onnx.NodeProto) -> bytes:
    """The right graph, with one output that `last` computes from what it was."""
    model = onnx.load_model_from_string(fused(0, 1, 2))
    for node in model.graph.node:
        node.output[:] = ["right" if name == output else name for name in node.output]
    model.graph.node.extend(last)
    data: bytes = model.SerializeToString()
    return data


BAD = {
    "no ONNX": (b"hello", "fused.file", "onnxruntime cannot load it"),
    "other stages": (fused(0, 2, 1), "fused.file", "with threshold"),
    "a stage too few": (fused(0, 1), "fused.file", "has exits"),
    "other classes": (fused(0, 1, 2, classes=5), "fused.outputs", "the manifest says"),
    "one stage as it is": (onnx_model(), "fused.inputs", "the manifest says"),
    "other logits": (spoilt("logits", helper.make_node("Add", ["right", "right"], ["logits"])), "fused.file", "logits"),
    "other labels": (spoilt("label", helper.make_node("Neg", ["right"], ["label"])), "fused.file", "has classes"),
    "other energies": (spoilt("energy", helper.make_node("Neg", ["right"], ["energy"])), "fused.file", "energies"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_the_cascade_of_the_stages_is_refused(tmp_path: Path, name: str) -> None:
    model, field, message = BAD[name]
    with pytest.raises(BundleError) as caught:
        verify(with_file(tmp_path / "bundle", model))
    assert caught.value.field == field
    assert message in str(caught.value)


def test_a_file_that_no_manifest_could_describe_is_refused() -> None:
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, ["N"])
    graph = helper.make_graph([helper.make_node("Identity", ["flag"], ["same"])], "g", [flag], [flag])
    graph.output[0].name = "same"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(BundleError, match=r"'flag' is of type tensor\(bool\)"):
        Whole(model.SerializeToString()).signature()


@pytest.mark.parametrize(
    ("energies", "expected"),
    [([0.5], None), ([0.5, 0.5], None), ([0.5, 0.5 + 1e-7], None), ([0.9, 0.2, 0.3], 0.6), ([0.25, 0.75], 0.5)],
)
def test_energies_are_parted_where_they_are_furthest_apart(energies: list[float], expected: float | None) -> None:
    assert between(np.array(energies)) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("option", ["name", "version"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, option: str) -> None:
    write_tiny_bundle(tmp_path / "source")
    wrong: dict[str, Any] = {option: "no/name"}
    with pytest.raises(BundleError) as caught:
        export(tmp_path / "source", tmp_path / "made", pixels=False, **wrong)
    assert caught.value.field == option
    assert not (tmp_path / "made").exists()
