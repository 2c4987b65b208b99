"""Costs read off a graph: those of the network it came from, and those of layers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cascade.errors import BundleError
from export.count import Count, check, count
from export.to_onnx import to_onnx
from tests.builders import onnx_model, tiny_bundle, tiny_macs
from tests.training.networks import frozen
from training.models.count import macs, params

pytestmark = pytest.mark.train


def graph(nodes: Sequence[onnx.NodeProto], classes: int = 2, **weights: NDArray[Any]) -> bytes:
    """Images (N, 3, 4, 4) -> logits (N, classes) through these nodes, with these weights."""
    made = helper.make_graph(
        nodes,
        "crafted",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("N", 3, 4, 4))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", classes))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("name", ["resnet8_0.25_a", "resnet8_0.125_b", "resnet8x4", "wrn10_1_simkd"])
def test_an_exported_network_costs_what_the_network_costs(name: str) -> None:
    net = frozen(name, 0)
    assert count(to_onnx(net, 8)).macs == macs(net, 8)


@pytest.mark.parametrize("name", ["resnet8_0.25_a", "resnet8_0.125_b"])
def test_a_folded_batch_norm_leaves_a_bias_of_its_weight_and_bias(name: str) -> None:
    net = frozen(name, 0)
    folded = sum(module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert count(to_onnx(net, 8)).params == params(net) - folded


def test_a_tiny_network_costs_what_its_layers_cost() -> None:
    assert count(onnx_model()) == Count(6 * 27 + 6 + 6 * 64 * 4 + 4, tiny_macs())


def test_groups_and_strides_make_a_convolution_cheaper() -> None:
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["maps"], group=3, strides=[2, 2], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    assert count(graph(nodes, classes=3, w=ones(3, 1, 1, 1))) == Count(3, 3 * 2 * 2)


def test_a_transposed_convolution_spreads_every_input() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["images", "w"], ["maps"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    assert count(graph(nodes, classes=5, w=ones(3, 5, 2, 2))).macs == 3 * 4 * 4 * 5 * 2 * 2


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_linear_layer_costs_a_product_a_weight(transposed: int) -> None:
    weights = ones(2, 48) if transposed else ones(48, 2)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=transposed),
    ]
    assert count(graph(nodes, w=weights, b=ones(2))) == Count(98, 96)


def test_a_product_of_two_activations_is_counted_and_one_of_constants_is_not() -> None:
    nodes = [
        helper.make_node("MatMul", ["images", "images"], ["products"]),
        helper.make_node("Flatten", ["products"], ["flat"]),
        helper.make_node("MatMul", ["w", "v"], ["product"]),
        helper.make_node("MatMul", ["flat", "product"], ["logits"]),
    ]
    assert count(graph(nodes, w=ones(48, 2), v=ones(2, 2))).macs == 3 * 4 * 4 * 4 + 96


def test_a_tensor_that_two_layers_read_counts_for_each() -> None:
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["maps"], kernel_shape=[1, 1]),
        helper.make_node("Conv", ["maps", "w", "b"], ["more"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["more"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    assert count(graph(nodes, classes=3, w=ones(3, 3, 1, 1), b=ones(3))).params == 2 * (9 + 3)


def test_a_weight_may_be_made_of_constants() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(ones(48, 2))),
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    assert count(graph(nodes)).macs == 96


def test_running_statistics_of_batch_norm_are_no_parameters() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["images", "a", "b", "c", "d"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    assert count(graph(nodes, classes=3, a=ones(3), b=ones(3), c=ones(3), d=2 * ones(3))) == Count(6, 0)


def test_a_graph_whose_shapes_are_hidden_cannot_be_counted() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["many"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["many", "one"], ["side"]),
        helper.make_node("Concat", ["side", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["images", "shape"], ["maps"]),
        helper.make_node("Conv", ["maps", "w"], ["more"], kernel_shape=[1, 1]),
        helper.make_node("ReduceMean", ["more"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    with pytest.raises(BundleError, match="cannot be inferred"):
        count(graph(nodes, w=ones(2, 3, 1, 1), one=np.array([1]), rest=np.array([3, -1, 2])))


def test_what_is_no_onnx_cannot_be_counted() -> None:
    with pytest.raises(BundleError, match="ONNX cannot read it"):
        count(b"hello")


def test_a_manifest_with_other_costs_is_refused() -> None:
    read = tiny_bundle(stages=1)
    check(read.manifest.stages[0], read.models[0], "stages[0]")
    cheaper = read.manifest.stages[0].model_copy(update={"macs": 7})
    with pytest.raises(BundleError, match=r"the graph has 11904, the manifest says 7") as caught:
        check(cheaper, read.models[0], "stages[0]")
    assert caught.value.field == "stages[0].macs"


def test_a_manifest_with_another_number_of_parameters_of_the_graph_is_refused() -> None:
    read = tiny_bundle(stages=1)
    own = read.manifest.stages[0].model_copy(update={"graph_params": count(read.models[0]).params})
    check(own, read.models[0], "stages[0]")
    with pytest.raises(BundleError, match=r"the graph has 1708, the manifest says 200") as caught:
        check(own.model_copy(update={"graph_params": own.params}), read.models[0], "stages[0]")
    assert caught.value.field == "stages[0].graph_params"
