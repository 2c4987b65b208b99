"""Shortcuts of option A are written for a runtime, and say the same; whatever else looks like one is left alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.count import count
from export.session import Array, Session
from export.shortcuts import as_convolutions, merge_slices
from export.to_onnx import to_onnx
from tests.builders import random_inputs
from tests.training.networks import frozen

pytestmark = pytest.mark.train

NAME = "resnet8_0.25_a"


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return onnx.load_model_from_string(to_onnx(frozen(NAME, 0), 8))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def logits_of(model: onnx.ModelProto, images: Array) -> Array:
    return Session(model.SerializeToString(), "stage").run(images)


def cut(steps: tuple[int, int] = (2, 2), axes: tuple[int, int] = (2, 3), starts: tuple[int, int] = (0, 0)) -> Any:
    """Two Slices and a Pad of channels, as the exporter writes them, from 3 channels to 5."""
    rows: dict[str, NDArray[Any]] = {"end": np.array([2**31 - 1]), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0])}
    for number in range(2):
        rows[f"start{number}"], rows[f"axis{number}"] = np.array([starts[number]]), np.array([axes[number]])
        rows[f"step{number}"] = np.array([steps[number]])
    nodes = [
        helper.make_node("Slice", ["images", "start0", "end", "axis0", "step0"], ["first"]),
        helper.make_node("Slice", ["first", "start1", "end", "axis1", "step1"], ["second"]),
        helper.make_node("Pad", ["second", "pads"], ["padded"]),
        helper.make_node("ReduceMean", ["padded"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    return nodes, rows


def model_of(nodes: list[onnx.NodeProto], rows: dict[str, NDArray[Any]], *outputs: str) -> onnx.ModelProto:
    """A graph around the nodes; its output is `logits`."""
    graph = helper.make_graph(
        nodes,
        "crafted",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", None))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in rows.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_two_slices_become_one_pooling_and_the_logits_keep_every_bit(exported: onnx.ModelProto) -> None:
    merged = merge_slices(exported)
    assert kinds(exported)["Slice"] == 4
    assert (kinds(merged)["Slice"], kinds(merged)["MaxPool"]) == (0, 2)
    images = random_inputs(5)
    assert np.array_equal(logits_of(merged, images), logits_of(exported, images))


def test_pooling_and_padding_become_a_convolution_that_picks_channels(exported: onnx.ModelProto) -> None:
    picked = as_convolutions(merge_slices(exported))
    assert (kinds(picked)["Pad"], kinds(picked)["MaxPool"], kinds(picked)["Conv"]) == (0, 0, 9)
    images = random_inputs(5)
    assert np.abs(logits_of(picked, images) - logits_of(exported, images)).max() < 1e-5


def test_the_picking_is_counted(exported: onnx.ModelProto) -> None:
    before, after = (count(model.SerializeToString()) for model in (exported, as_convolutions(merge_slices(exported))))
    assert after.macs - before.macs == 4 * 8 * 4 * 4 + 8 * 16 * 2 * 2


def test_the_model_that_was_given_is_left_as_it_is(exported: onnx.ModelProto) -> None:
    before = exported.SerializeToString()
    as_convolutions(merge_slices(exported))
    assert exported.SerializeToString() == before


def test_constants_that_nobody_reads_any_more_are_dropped(exported: onnx.ModelProto) -> None:
    merged = as_convolutions(merge_slices(exported))
    read = {name for node in merged.graph.node for name in node.input}
    assert {tensor.name for tensor in merged.graph.initializer} <= read


@pytest.mark.parametrize("steps", [(2, 2), (3, 3)])
def test_a_crafted_shortcut_keeps_its_function(steps: tuple[int, int]) -> None:
    model, images = model_of(*cut(steps)), random_inputs(3)
    picked = as_convolutions(merge_slices(model))
    assert kinds(picked) == {"Conv": 1, "ReduceMean": 1}
    assert np.abs(logits_of(picked, images) - logits_of(model, images)).max() < 1e-6


@pytest.mark.parametrize(
    "options",
    [{"steps": (2, 1)}, {"steps": (1, 1)}, {"axes": (1, 2)}, {"axes": (2, 2)}, {"starts": (1, 0)}],
    ids=str,
)
def test_other_slices_are_left_alone(options: dict[str, Any]) -> None:
    model = model_of(*cut(**options))
    assert kinds(merge_slices(model)) == kinds(model)


def test_a_slice_that_somebody_else_reads_is_left_alone() -> None:
    nodes, rows = cut()
    nodes[3] = helper.make_node("ReduceMean", ["padded"], ["one"], axes=[2, 3], keepdims=0)
    more = [
        helper.make_node("ReduceMean", ["first"], ["other"], axes=[2, 3], keepdims=0),
        helper.make_node("Concat", ["one", "other"], ["logits"], axis=1),
    ]
    model = model_of([*nodes, *more], rows)
    assert kinds(merge_slices(model)) == kinds(model)


@pytest.mark.parametrize(
    ("pads", "value"),
    [([0, 1, 0, 0, 0, 1, 1, 0], 0.0), ([0, 1, 0, 0, 0, 1, 0, 0], 2.0), ([0, -1, 0, 0, 0, 0, 0, 0], 0.0)],
    ids=["rows too", "not zeros", "channels cut off"],
)
def test_other_paddings_are_left_alone(pads: list[int], value: float) -> None:
    nodes, rows = cut()
    nodes[2] = helper.make_node("Pad", ["second", "pads", "value"], ["padded"])
    model = merge_slices(model_of(nodes, {**rows, "pads": np.array(pads), "value": np.array(value, np.float32)}))
    assert kinds(as_convolutions(model)) == kinds(model)


def test_a_padding_of_something_else_is_left_alone() -> None:
    nodes, rows = cut()
    nodes[1] = helper.make_node("Relu", ["first"], ["second"])
    model = model_of(nodes, rows)
    assert kinds(as_convolutions(merge_slices(model))) == kinds(model)
