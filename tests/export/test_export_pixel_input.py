"""Graphs that take pixels: the same logits to the last bit, undone without a trace, and only where we know them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from cascade import bundle
from cascade.bundle import Bundle, sha256
from cascade.errors import BundleError
from cascade.files import ImageType
from cascade.pixels import normalise
from export.count import count
from export.onefile import fused_bundle
from export.pixel_input import PIXELS, SHIFT, taking, with_pixels, without_pixels
from export.profile import profile
from export.session import Session, sessions
from export.verify import check, golden_differences
from server.runtime import OnnxRuntime
from tests.builders import golden_bundle, onnx_model, random_inputs, random_pixels, tiny_bundle
from tests.serving import ROOT

pytestmark = pytest.mark.train

SHIPPED = ["digits", "cifar10", "cifar10-int8"]


def shipped(name: str, kind: ImageType) -> Bundle:
    return taking(bundle.read(ROOT / "bundles" / name), kind)


@pytest.mark.parametrize("name", SHIPPED)
def test_logits_of_pixels_are_to_the_last_bit_those_of_pixels_normalised_before(name: str) -> None:
    floats, pixels = (shipped(name, kind) for kind in ("float32", "uint8"))
    rule = floats.manifest.preprocess
    images = random_pixels(17, rule.size)
    inputs = normalise(images, rule)
    for before, after in zip(sessions(floats.models), sessions(pixels.models, rule), strict=True):
        for size in (1, 8, 17):
            expected = before.in_batches(inputs, size)
            assert np.array_equal(after.in_batches(images, size), expected)
            assert np.array_equal(after.in_batches(inputs, size), expected)


@pytest.mark.parametrize("name", SHIPPED)
def test_taking_pixels_off_leaves_the_very_bytes_there_were(name: str) -> None:
    floats = shipped(name, "float32")
    again = taking(taking(floats, "uint8"), "float32")
    assert again == floats
    assert [sha256(model) for model in again.models] == [stage.sha256 for stage in again.manifest.stages]


def test_weights_and_nodes_of_the_network_are_left_alone() -> None:
    rule, before = tiny_bundle().manifest.preprocess, onnx.load_model_from_string(onnx_model())
    after = with_pixels(before, rule)
    assert list(after.graph.node[3:]) == list(before.graph.node)
    assert list(after.graph.initializer[:-2]) == list(before.graph.initializer)
    assert without_pixels(after) == before
    assert without_pixels(before) is before


def test_what_pixels_cost_in_front_of_a_network_is_not_counted() -> None:
    rule, before = tiny_bundle().manifest.preprocess, onnx.load_model_from_string(onnx_model())
    after = with_pixels(before, rule)
    assert count(after.SerializeToString()) == count(before.SerializeToString())
    assert profile(after) == profile(before)


def test_a_bundle_of_pixels_is_whole_and_has_the_golden_samples_it_had() -> None:
    floats = golden_bundle()
    made = taking(floats, "uint8")
    assert [stage.input.dtype for stage in made.manifest.stages] == ["uint8"] * 3
    assert check(made).manifest == made.manifest
    assert made.golden == floats.golden
    assert golden_differences(made, sessions(made.models)) == golden_differences(
        floats, sessions(floats.models, floats.manifest.preprocess)
    )


def test_the_server_gives_what_it_gave() -> None:
    floats = tiny_bundle()
    before, after = OnnxRuntime(floats), OnnxRuntime(taking(floats, "uint8"))
    for images in (random_pixels(5), random_inputs(5)):
        assert np.array_equal(after.run(1, images), before.run(1, images))


def test_one_file_of_a_bundle_that_takes_pixels_is_that_of_one_that_takes_floats() -> None:
    floats = tiny_bundle()
    made = fused_bundle(taking(floats, "uint8"))
    assert made.fused == fused_bundle(floats).fused
    assert made.manifest.stages[0].input.dtype == "uint8"


def test_a_bundle_that_takes_what_is_wanted_is_left_alone() -> None:
    floats = tiny_bundle()
    made = taking(floats, "uint8")
    assert taking(floats, "float32") == floats
    assert taking(made, "uint8") == made


def test_a_graph_of_pixels_that_was_not_made_here_is_refused() -> None:
    with pytest.raises(BundleError, match=r"stages\[0\].file: has the inputs pixels, shift: only graphs that rescade"):
        taking(tiny_bundle(dtype="uint8"), "float32")


def test_a_graph_that_lists_its_weights_among_its_inputs_is_refused() -> None:
    model = onnx.load_model_from_string(onnx_model())
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [6]))
    read = tiny_bundle(1)
    with pytest.raises(BundleError, match="has the inputs image, b"):
        taking(replace(read, models=(model.SerializeToString(),)), "uint8")


def test_a_graph_with_another_mean_than_the_manifest_is_refused() -> None:
    made = taking(tiny_bundle(), "uint8")
    rule = made.manifest.preprocess.model_copy(update={"mean": (0.1, 0.2, 0.3)})
    with pytest.raises(BundleError, match="the graph has another mean or std") as caught:
        check(replace(made, manifest=made.manifest.model_copy(update={"preprocess": rule})))
    assert caught.value.field == "stages[0].input"


def test_a_shift_of_another_name_than_the_manifest_says_is_refused() -> None:
    made = tiny_bundle(1, dtype="uint8")
    [stage] = made.manifest.stages
    other = stage.model_copy(update={"input": stage.input.model_copy(update={"shift": "other"})})
    with pytest.raises(BundleError, match="the file has 'shift', the manifest says 'other'"):
        check(replace(made, manifest=made.manifest.model_copy(update={"stages": (other,)})))


def test_pixels_with_more_than_a_shift_beside_them_are_refused() -> None:
    model = with_pixels(onnx.load_model_from_string(onnx_model()), tiny_bundle().manifest.preprocess)
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [6]))
    with pytest.raises(BundleError, match="takes pixels, and has 2 inputs beside them"):
        Session(model.SerializeToString(), "stages[0].file")


def test_a_shift_that_the_manifest_does_not_know_is_refused() -> None:
    made = tiny_bundle(1, dtype="uint8")
    [stage] = made.manifest.stages
    other = stage.model_copy(update={"input": stage.input.model_copy(update={"shift": None})})
    with pytest.raises(BundleError, match="the file has 'shift', the manifest says None"):
        check(replace(made, manifest=made.manifest.model_copy(update={"stages": (other,)})))


def test_the_server_gives_floats_the_logits_of_their_pixels_where_the_stem_is_on_the_grid() -> None:
    read = shipped("cifar10-int8", "uint8")
    rule, model, images = read.manifest.preprocess, OnnxRuntime(read), random_pixels(5, 32)
    assert read.manifest.stages[0].input.shift is None
    assert np.array_equal(model.run(0, normalise(images, rule)), model.run(0, images))


def test_an_export_takes_pixels_unless_told_otherwise(folder: Path, built: object) -> None:
    read = bundle.read(folder)
    assert {(stage.input.name, stage.input.shift) for stage in read.manifest.stages} == {(PIXELS, SHIFT)}
    floats = taking(read, "float32")
    assert [stage.input.name for stage in floats.manifest.stages] == ["images"] * 3
    assert check(floats).golden == check(read).golden
