"""A stem on the grid of the pixels: the same function of the same images, borders too, and undone without a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from cascade.errors import BundleError
from cascade.files import Quantiser
from cascade.manifest import Preprocess
from cascade.pixels import normalise
from export.count import count
from export.precision import to_int8
from export.profile import profile
from export.session import Session
from export.stem import Grid, on_grid, rounds_to_grid, stem_of, takes_grid, widened, with_floats, without_floats
from export.to_onnx import to_onnx
from tests.builders import MEAN, STD, onnx_model, random_pixels
from tests.training.networks import frozen

pytestmark = pytest.mark.train

RULES = {
    "mid": Preprocess(size=8, mean=MEAN, std=STD),
    "dark": Preprocess(size=8, mean=(0.0, 0.01, 0.02), std=STD),
    "bright": Preprocess(size=8, mean=(0.99, 0.9, 1.0), std=STD),
}


@pytest.fixture(scope="module")
def exported() -> bytes:
    return to_onnx(frozen("resnet8_0.25_a", 0), 8)


@pytest.fixture(scope="module")
def quantised(exported: bytes) -> bytes:
    rule = RULES["mid"]
    return to_int8(exported, normalise(random_pixels(64), rule), Quantiser(images=64), rule)


def test_zero_is_the_byte_nearest_to_the_mean_colour_and_inside_the_farthest() -> None:
    assert [Grid.of(rule) for rule in RULES.values()] == [Grid(102, 255), Grid(3, 255), Grid(246, 0)]


def test_a_grids_values_are_the_pixels_from_its_zero_and_a_channel_of_its_own() -> None:
    values = Grid(100, 255).values(np.full((1, 3, 2, 2), 90, np.uint8))
    assert values.dtype == np.float32
    assert values[0, :, 0, 0].tolist() == [-10, -10, -10, 155]


@pytest.mark.parametrize("name", RULES)
def test_a_widened_stem_gives_the_logits_of_normalised_images(exported: bytes, name: str) -> None:
    rule, pixels = RULES[name], random_pixels(9)
    wide = widened(onnx.load_model_from_string(exported), rule).SerializeToString()
    found = Session(wide, "stage").run(Grid.of(rule).values(pixels))
    expected = Session(exported, "stage").run(normalise(pixels, rule))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", RULES)
def test_int8_says_of_pixels_nearly_what_float_says(exported: bytes, name: str) -> None:
    rule, pixels = RULES[name], random_pixels(64)
    inputs = normalise(pixels, rule)
    ours = Session(to_int8(exported, inputs, Quantiser(images=64), rule), "stage").run(inputs)
    theirs = Session(exported, "stage").run(inputs)
    assert np.sqrt(np.square(ours - theirs).mean()) < 0.2 * theirs.std()


def test_a_quantised_graph_takes_the_bytes_as_they_are(quantised: bytes) -> None:
    rule, pixels = RULES["mid"], random_pixels(9)
    bare = without_floats(onnx.load_model_from_string(quantised))
    found = Session(bare.SerializeToString(), "stage").run(pixels)
    assert np.array_equal(found, Session(quantised, "stage").run(normalise(pixels, rule)))
    assert (takes_grid(bare), rounds_to_grid(bare)) == (True, False)


def test_floats_are_put_on_and_taken_off_without_a_trace(quantised: bytes) -> None:
    model = onnx.load_model_from_string(quantised)
    assert (takes_grid(model), rounds_to_grid(model)) == (False, True)
    assert with_floats(without_floats(model), RULES["mid"]).SerializeToString() == quantised


def test_what_brings_floats_to_the_grid_is_not_counted(quantised: bytes) -> None:
    rounding = onnx.load_model_from_string(quantised)
    alone = without_floats(rounding)
    assert count(quantised) == count(alone.SerializeToString())
    assert profile(rounding) == profile(alone)


def test_the_graph_rounds_floats_as_the_server_does(quantised: bytes) -> None:
    rule = RULES["mid"]
    rows = np.random.default_rng(3).normal(scale=2, size=(16, 3, 8, 8)).astype(np.float32)
    bare = without_floats(onnx.load_model_from_string(quantised)).SerializeToString()
    assert np.array_equal(Session(bare, "stage", rule).run(rows), Session(quantised, "stage").run(rows))


def test_a_graph_whose_images_are_read_twice_is_quantised_like_any_other() -> None:
    model = onnx.load_model_from_string(onnx_model())
    [stem] = [node for node in model.graph.node if "image" in node.input]
    assert stem_of(model) is stem
    model.graph.node.append(onnx.helper.make_node("Identity", ["image"], ["seen"]))
    assert stem_of(model) is None
    rule, inputs = RULES["mid"], normalise(random_pixels(32), RULES["mid"])
    made = onnx.load_model_from_string(to_int8(model.SerializeToString(), inputs, Quantiser(images=32), rule))
    assert (takes_grid(made), rounds_to_grid(made)) == (False, False)


def test_a_graph_whose_images_no_convolution_reads_has_no_stem() -> None:
    model = onnx.load_model_from_string(onnx_model())
    model.graph.node[0].op_type = "Relu"
    assert stem_of(model) is None


def test_a_graph_whose_kernel_is_used_twice_has_no_stem() -> None:
    model = onnx.load_model_from_string(onnx_model())
    model.graph.node.append(onnx.helper.make_node("Identity", ["w"], ["again"]))
    assert stem_of(model) is None


def before_the_grid(*kinds: str, scale: float = 1.0, zero: int = 102) -> onnx.ModelProto:
    """What a quantiser might leave at the images: these nodes, and a network behind them."""
    model = onnx.load_model_from_string(onnx_model())
    weights: dict[str, Any] = {"s": np.array(scale, np.float32), "z": np.array(zero, np.uint8)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    del model.graph.node[:]
    for kind in kinds:
        model.graph.node.append(onnx.helper.make_node(kind, ["image", "s", "z"][: 3 if "Q" in kind else 1], [kind]))
    return model


FAULTS = {
    "nothing that reads them": (before_the_grid(), "must read the images, not nothing"),
    "something else": (before_the_grid("Identity"), "must read the images, not Identity"),
    "one of two": (before_the_grid("QuantizeLinear", "Relu"), "must read the images, not QuantizeLinear, Relu"),
    "another scale": (before_the_grid("QuantizeLinear", scale=2), r"scale 1 and zero 102, and have \[2.0, 102\]"),
    "another zero": (before_the_grid("QuantizeLinear", zero=0), r"scale 1 and zero 102, and have \[1.0, 0\]"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_images_that_were_quantised_otherwise_are_refused(name: str) -> None:
    model, message = FAULTS[name]
    with pytest.raises(BundleError, match=f"quantiser: .*{message}"):
        on_grid(model, RULES["mid"])


def test_a_graph_without_a_stem_cannot_be_widened() -> None:
    model = onnx.load_model_from_string(onnx_model())
    model.graph.node[0].op_type = "Relu"
    with pytest.raises(BundleError, match="quantiser: no convolution of three channels alone"):
        widened(model, RULES["mid"])


def test_a_graph_with_two_inputs_is_refused() -> None:
    model = onnx.load_model_from_string(onnx_model())
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(BundleError, match="must have one input, the images, and has image, mask"):
        stem_of(model)


def test_floats_are_taken_off_only_where_they_were_put_on(quantised: bytes) -> None:
    model = onnx.load_model_from_string(quantised)
    model.graph.initializer.append(model.graph.initializer[0])  # so that the weights at the end are others
    assert not rounds_to_grid(model)
    with pytest.raises(BundleError, match="does not begin with what rounds floats"):
        without_floats(model)
