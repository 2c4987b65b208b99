"""Preprocessing inside the graph: exact for images of the network's size, close to Pillow for all others."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_sample_images

from cascade.errors import BundleError
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, fit, normalise, scale_and_shift
from export.arithmetic import fitted as fitted_in_graph
from export.arithmetic import normalised
from export.fused import fuse
from export.nodes import Nodes
from export.parts import load
from export.session import Array, opened
from export.whole import Whole
from tests.builders import onnx_model

pytestmark = pytest.mark.train

SIZES = [(427, 640), (427, 100), (100, 640), (33, 8), (7, 100), (31, 33), (200, 30), (1, 1), (5, 400), (8, 8)]


def rule(size: int = 8, interpolation: Literal["bilinear", "bicubic"] = "bilinear") -> Preprocess:
    return Preprocess(size=size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation=interpolation)


def noise(count: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def fitted(images: Pixels, rule: Preprocess) -> Array:
    """What the server would feed a stage."""
    return normalise(np.stack([fit(image, rule) for image in images]), rule)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_of_the_networks_size_get_the_very_logits_of_the_stages(
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    stages, images = [load(onnx_model(seed), "stage") for seed in range(3)], noise(40, 8, 8)
    plain = Whole(fuse(stages, "summed").SerializeToString())
    with_pixels = Whole(fuse(stages, "summed", pixels=rule(interpolation=interpolation)).SerializeToString())
    for threshold in (0.6, 0.9, 2.0):
        expected, found = plain.run(fitted(images, rule()), threshold), with_pixels.run(images, threshold)
        assert np.array_equal(found.logits, expected.logits)
        assert found.stages.tolist() == expected.stages.tolist()


def largest_error(images: Pixels, rule: Preprocess) -> float:
    """Largest difference between the graph's input of a network and the server's, in steps of 8 bits."""
    nodes = Nodes()
    nodes("Identity", normalised(nodes, fitted_in_graph(nodes, "images", rule), rule), name="input")
    value = helper.make_tensor_value_info
    graph = nodes.graph(
        "pixels",
        [value("images", TensorProto.UINT8, ["N", "H", "W", 3])],
        [value("input", TensorProto.FLOAT, ["N", 3, rule.size, rule.size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    found = opened(model.SerializeToString(), "pixels").run(None, {"images": images})[0]
    return float((np.abs(found - fitted(images, rule)) / scale_and_shift(rule)[0]).max())


@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize(("interpolation", "steps"), [("bilinear", 1), ("bicubic", 5)])
def test_photographs_of_other_sizes_become_pillows_pixels_within_a_few_steps(
    size: int, interpolation: Literal["bilinear", "bicubic"], steps: int
) -> None:
    for photo in load_sample_images().images:
        for height, width in SIZES:
            images = np.ascontiguousarray(photo[np.newaxis, :height, :width])
            assert largest_error(images, rule(size, interpolation)) < steps + 0.01


def test_noise_of_other_sizes_becomes_pillows_pixels_within_two_steps() -> None:
    for height, width in SIZES:
        assert largest_error(noise(2, height, width), rule(32)) < 2.01


def test_a_rule_that_crops_cannot_be_put_into_a_graph() -> None:
    crop = Preprocess(size=8, resize="short_side", resize_to=9, crop="center", mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(BundleError, match="only 'stretch' can") as caught:
        fuse([load(onnx_model(), "stage")], "summed", pixels=crop)
    assert caught.value.field == "preprocess.resize"
