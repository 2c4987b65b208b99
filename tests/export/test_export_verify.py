"""A bundle is run before it is believed; each fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper

from cascade import bundle
from cascade.errors import BundleError
from export.session import Session
from export.verify import verify
from tests.builders import onnx_model, random_inputs, tiny_bundle, write_golden_bundle, write_tiny_bundle
from tests.export.graphs import CLASSES, bundle_with, classifier
from tests.tampering import ACCIDENTS, EDITS, MISTAKES, WRITERS, mistake_normalising

pytestmark = pytest.mark.train


def node(kind: str, inputs: list[str], output: str = "logits", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def hidden(name: str, *numbers: int) -> list[onnx.NodeProto]:
    """Whole numbers that no shape inference can know, since they are made from the images."""
    return [
        node("ReduceSum", ["image"], "sum", keepdims=0),
        node("Constant", [], "nothing", value_float=0.0),
        node("Mul", ["sum", "nothing"], "none"),
        node("Constant", [], f"{name}s", value_floats=[float(number) for number in numbers]),
        node("Add", ["none", f"{name}s"], f"{name} as floats"),
        node("Cast", [f"{name} as floats"], name, to=TensorProto.INT64),
    ]


BAD: dict[str, tuple[bytes, str, str]] = {
    "no ONNX": (b"hello", "stages[1].file", "onnxruntime cannot load it"),
    "half a file": (classifier()[:500], "stages[1].file", "onnxruntime cannot load it"),
    "another input name": (classifier(inputs=["pixels"]), "stages[1].input", "the file has 'pixels'"),
    "another size": (onnx_model(size=9), "stages[1].input", "the manifest says"),
    "a fixed batch": (onnx_model(batch=7), "stages[1].input", "the manifest says"),
    "other classes": (onnx_model(classes=5), "stages[1].output", "the manifest says"),
    "two inputs": (classifier(inputs=["image", "mask"]), "stages[1].file", "has 2 inputs"),
    "double precision": (
        classifier(node("Cast", ["scores"], to=TensorProto.DOUBLE), kind=TensorProto.DOUBLE),
        "stages[1].output",
        "tensor(double)",
    ),
    "NaN": (classifier(node("Log", ["scores"])), "stages[1]", "not numbers"),
    "infinity": (classifier(node("Div", ["scores", "zero"]), zero=np.float32(0)), "stages[1]", "not numbers"),
    "an answer that depends on the batch": (
        classifier(
            node("ReduceMean", ["scores"], "mean", axes=[0], keepdims=1),
            node("Sub", ["scores", "mean"]),
        ),
        "stages[1]",
        "with the batch it is in",
    ),
    "a batch that was baked in": (
        classifier(node("Reshape", ["scores", "shape"]), shape=np.array([7, CLASSES])),
        "stages[1].output",
        "the manifest says",
    ),
    "a batch that was baked in, and hidden": (
        classifier(*hidden("shape", 7, CLASSES), node("Reshape", ["scores", "shape"])),
        "stages[1].file",
        "onnxruntime cannot run it on a batch of 1",
    ),
    "one answer for a whole batch, and hidden": (
        classifier(*hidden("one", 1), node("Slice", ["scores", "zero", "one"]), zero=np.array([0])),
        "stages[1]",
        "gives (1, 4) for 7 images",
    ),
}


@pytest.mark.parametrize("stages", [1, 3])
def test_a_good_bundle_is_verified(tmp_path: Path, stages: int) -> None:
    written = write_tiny_bundle(tmp_path / "bundle", stages=stages)
    found = verify(tmp_path / "bundle")
    assert found.manifest == written.manifest
    assert found.largest < 1e-4


def test_a_crafted_graph_without_a_fault_is_verified(tmp_path: Path) -> None:
    assert len(verify(bundle_with(tmp_path / "bundle", classifier())).manifest.stages) == 2


@pytest.mark.parametrize("name", BAD)
def test_a_graph_with_a_fault_is_refused_and_named(tmp_path: Path, name: str) -> None:
    model, field, message = BAD[name]
    folder = bundle_with(tmp_path / "bundle", model)
    with pytest.raises(BundleError) as caught:
        verify(folder)
    assert caught.value.field == field
    assert message in str(caught.value)


def test_weights_outside_the_file_are_refused_where_no_digest_covers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(classifier())
    (tmp_path / "weights.bin").write_bytes(model.graph.initializer[0].raw_data)
    external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    model.graph.initializer[0].ClearField("raw_data")
    folder = bundle_with(tmp_path / "bundle", model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="onnxruntime cannot load it"):
        verify(folder)


def test_a_changed_file_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "stage1.onnx").write_bytes(b"hello")
    with pytest.raises(BundleError) as caught:
        verify(tmp_path / "bundle")
    assert caught.value.field == "stages[1].sha256"


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        verify(tmp_path)


def test_a_session_gives_the_same_in_batches_of_any_size() -> None:
    session = Session(tiny_bundle().models[0], "stages[0]")
    images = random_inputs(10)
    together = session.run(images)
    assert np.allclose(session.in_batches(images, 3), together, atol=1e-6)
    assert np.allclose(session.in_batches(images, 100), together, atol=1e-6)


def test_verifying_leaves_the_bundle_as_it_is(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    before = bundle.read(tmp_path / "bundle")
    verify(tmp_path / "bundle")
    assert bundle.read(tmp_path / "bundle") == before


@pytest.mark.parametrize("name", ACCIDENTS)
def test_a_bundle_that_was_damaged_is_refused(tmp_path: Path, name: str) -> None:
    write_golden_bundle(tmp_path / "bundle")
    spoil, message = ACCIDENTS[name]
    spoil(tmp_path / "bundle")
    with pytest.raises(BundleError) as caught:
        verify(tmp_path / "bundle")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", EDITS)
def test_a_skilful_edit_is_caught_by_the_golden_samples(tmp_path: Path, name: str) -> None:
    write_golden_bundle(tmp_path / "bundle")
    spoil, message = EDITS[name]
    spoil(tmp_path / "bundle")
    with pytest.raises(BundleError) as caught:
        verify(tmp_path / "bundle")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("change", MISTAKES)
@pytest.mark.parametrize("kind", WRITERS)
def test_another_mean_or_std_than_the_graphs_were_made_for_is_refused(tmp_path: Path, kind: str, change: str) -> None:
    WRITERS[kind](tmp_path / "bundle")
    verify(tmp_path / "bundle")
    mistake_normalising(tmp_path / "bundle", change)
    with pytest.raises(BundleError, match=r"golden samples differ|another mean or std|mean or std was changed"):
        verify(tmp_path / "bundle")


def test_the_golden_samples_get_the_same_logits_here(tmp_path: Path) -> None:
    write_golden_bundle(tmp_path / "bundle")
    found = verify(tmp_path / "bundle").golden
    assert found is not None
    assert max(found) < 1e-4
    assert verify(write_bundle_without(tmp_path / "older")).golden is None


def write_bundle_without(folder: Path) -> Path:
    write_tiny_bundle(folder)
    return folder
