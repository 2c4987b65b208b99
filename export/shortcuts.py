"""Shortcuts that skip pixels and add channels, written so that a runtime can run them well; both rewrites are exact.

The networks of He et al. for CIFAR join two widths by `x[:, :, ::2, ::2]` and channels of zeros ("option A"). The
exporter writes that as two Slices and a Pad, which no runtime keeps in its own memory layout: activations are put in
order, cut, and put out of order again.

`merge_slices` writes the Slices as a 1x1 max pooling, which costs no arithmetic and gives the same bits.
`as_convolutions` then writes pooling and padding as a 1x1 convolution that picks channels: that stays inside a chain of
quantised convolutions, where a Pad leaves it, for the price of its multiply-accumulates, which are counted like any
other.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

Constants = dict[str, NDArray[np.generic]]

PICK = "pick."  # how the names of the kernels that pick channels begin


def merge_slices(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write each pair of Slices that takes every n-th row and every n-th column as one 1x1 max pooling.

    Args:
        model: left as it is.

    Returns:
        A model that gives the same logits, to the last bit.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for second in [node for node in graph.node if node.op_type == "Slice"]:
        first = makers.get(second.input[0])
        if first is None or first.op_type != "Slice" or _users(graph, first.output[0]) != 1:
            continue
        steps = dict(_step(node, constants) for node in (first, second))
        if set(steps) == {2, 3} and steps[2] == steps[3] > 1:
            pooling = helper.make_node(
                "MaxPool",
                [first.input[0]],
                [second.output[0]],
                name=second.name,
                kernel_shape=[1, 1],
                strides=[steps[2]] * 2,
            )
            _replace(graph, second, pooling)
            graph.node.remove(first)
    _tidy(graph)
    return result


def as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write each 1x1 pooling that is padded with channels of zeros as one 1x1 convolution.

    Args:
        model: left as it is; its Slices merged.

    Returns:
        A model with the same function; sums may be rounded otherwise, since more of it is fused.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    shaped = onnx.shape_inference.infer_shapes(result).graph
    widths = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in [*shaped.value_info, *shaped.input]
        if len(value.type.tensor_type.shape.dim) == 4
    }
    for padding in [node for node in graph.node if node.op_type == "Pad"]:
        pooling, width = makers.get(padding.input[0]), widths.get(padding.input[0], 0)
        added = _channels_added(padding, constants)
        if pooling is None or not _is_subsampling(pooling) or _users(graph, pooling.output[0]) != 1:
            continue
        if added is None or not width:
            continue
        before, after = added
        kernel = np.zeros((before + width + after, width, 1, 1), np.float32)
        kernel[before + np.arange(width), np.arange(width)] = 1
        graph.initializer.append(numpy_helper.from_array(kernel, PICK + padding.name))
        strides = next(list(each.ints) for each in pooling.attribute if each.name == "strides")
        picking = helper.make_node(
            "Conv",
            [pooling.input[0], PICK + padding.name],
            [padding.output[0]],
            name=pooling.name,
            kernel_shape=[1, 1],
            strides=strides,
        )
        _replace(graph, padding, picking)
        graph.node.remove(pooling)
    _tidy(graph)
    return result


def _constants(graph: onnx.GraphProto) -> Constants:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _users(graph: onnx.GraphProto, wanted: str) -> int:
    readers = [name for node in graph.node for name in node.input] + [value.name for value in graph.output]
    return readers.count(wanted)


def _step(node: NodeProto, constants: Constants) -> tuple[int, int]:
    """The axis that a Slice walks from its beginning to its end, and the step; (-1, 0) for any other Slice."""
    if len(node.input) != 5 or any(name not in constants for name in node.input[1:]):
        return -1, 0
    start, end, axis, step = (constants[name].tolist() for name in node.input[1:])
    if start == [0] and end[0] >= np.iinfo(np.int32).max and len(axis) == 1:
        return axis[0], step[0]
    return -1, 0


def _is_subsampling(node: NodeProto) -> bool:
    given = {each.name: list(each.ints) for each in node.attribute}
    return node.op_type == "MaxPool" and given.get("kernel_shape") == [1, 1] and "strides" in given and len(given) == 2


def _channels_added(node: NodeProto, constants: Constants) -> tuple[int, int] | None:
    """How many channels of zeros a Pad puts before and after; None for any other Pad."""
    mode = next((each.s for each in node.attribute if each.name == "mode"), b"constant")
    pads = constants.get(node.input[1])
    value = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if mode != b"constant" or len(node.input) > 3 or pads is None or value is None or value.any():
        return None
    sides = pads.tolist()
    only_channels = len(sides) == 8 and not any(size for place, size in enumerate(sides) if place not in (1, 5))
    return (sides[1], sides[5]) if only_channels and min(sides) >= 0 else None


def _replace(graph: onnx.GraphProto, old: NodeProto, new: NodeProto) -> None:
    """Put a node in another's place; the order of a graph is the order it runs in."""
    place = list(graph.node).index(old)
    graph.node.remove(old)
    graph.node.insert(place, new)


def _tidy(graph: onnx.GraphProto) -> None:
    """Drop constants that nobody reads any more."""
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
