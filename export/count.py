"""Parameters and multiply-accumulates of an ONNX file, from its own graph: what runs is what is counted.

Products of two activations (attention) are counted, as `training.models.count` counts them. What is not counted is what
stands in front of a network, which normalises pixels or rounds floats to their grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
from onnx import NodeProto, shape_inference

from cascade.errors import BundleError
from cascade.files import Stage
from export.pixel_input import bare

# Where the weights are among a layer's inputs.
WEIGHTS = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
QUANTISED = {"DequantizeLinear", "QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
# Inputs that are learned: of the operators that also take constants which are not.
LEARNED = {
    "BatchNormalization": (1, 2),
    "DequantizeLinear": (0,),
    "QuantizeLinear": (),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
}
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}


@dataclass(frozen=True)
class Count:
    """`params`: elements of weights, biases and other learned tensors, of each layer. `macs`: for one image."""

    params: int
    macs: int


def count(model: bytes, where: str = "graph") -> Count:
    """Count a classifier, float or quantised.

    Args:
        model: ONNX file with one input (N, 3, S, S), float32 or uint8.
        where: field of the bundle, for messages.

    Returns:
        Parameters, batch norm's running statistics, scales and zero points left out, where a tensor counts for each
        layer that reads it, since exporters store equal ones once; and the multiply-accumulates of convolutions and
        matrix products for one image, biases ignored, without what no image can change.

    Raises:
        BundleError: the shape of a layer cannot be inferred.
    """
    graph = _shaped(model, where)
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    constant = _constants(graph)
    macs = 0
    for node in graph.node:
        place = WEIGHTS.get(node.op_type)
        if place is None or node.output[0] in constant:
            continue
        # a transposed convolution spreads its inputs, every other layer gathers them
        many = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        weight, maps = shapes.get(node.input[place], []), shapes.get(many, [])
        if not weight or not maps or 0 in (*weight, *maps):
            raise BundleError(where, f"cannot count: the shapes around {node.op_type} {node.name!r} cannot be inferred")
        macs += math.prod(maps) * _products(node, weight)
    return Count(_params(graph), macs)


def check(stage: Stage, model: bytes, where: str) -> None:
    """The manifest's costs are those of the graph; its parameters too, where the manifest says them.

    Raises:
        BundleError: they are not.
    """
    found = count(model, where)
    if found.macs != stage.macs:
        raise BundleError(f"{where}.macs", f"the graph has {found.macs}, the manifest says {stage.macs}")
    if stage.graph_params is not None and found.params != stage.graph_params:
        message = f"the graph has {found.params}, the manifest says {stage.graph_params}"
        raise BundleError(f"{where}.graph_params", message)


def _shaped(model: bytes, where: str) -> onnx.GraphProto:
    """The graph for a batch of one, with the shapes of what flows in it."""
    try:
        loaded = bare(onnx.load_model_from_string(model))
        for value in loaded.graph.input:
            if sides := value.type.tensor_type.shape.dim:
                sides[0].dim_value = 1
        for value in loaded.graph.output:  # a symbol that is there already would win over what is inferred
            if sides := value.type.tensor_type.shape.dim:
                sides[0].dim_value = 1
        del loaded.graph.value_info[:]
        return shape_inference.infer_shapes(loaded, data_prop=True).graph
    except Exception as error:  # onnx and protobuf share no public base
        raise BundleError(where, f"cannot count: ONNX cannot read it: {error}") from error


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that no image can change."""
    names = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Constant" and not node.input:
            continue
        if all(name in names for name in node.input if name):
            names.update(node.output)
    return names


def _products(node: NodeProto, weight: list[int]) -> int:
    """Products for each element of the map that is counted by."""
    if "Conv" in node.op_type:
        return math.prod(weight[1:])
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return weight[-1 if transposed else -2]


def _params(graph: onnx.GraphProto) -> int:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = 0
    for node in graph.node:
        places = LEARNED.get(node.op_type, range(len(node.input)))
        for place in places:
            name = node.input[place] if place < len(node.input) else ""
            tensor = tensors.get(name)
            if tensor is None or not tensor.dims:
                continue
            if tensor.data_type in FLOATS or node.op_type in QUANTISED:
                found += math.prod(tensor.dims)
    return found
