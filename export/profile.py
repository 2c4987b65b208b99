"""What an ONNX graph takes: parameters, multiply-accumulates, memory for activations, and work for each byte moved.

All of it follows from the graph, for one image, and is exact under these conventions.

- A tensor is live from the node that makes it to the last node that reads it; the network's input is live from the
  start, and its output to the end. At each node the bytes live are all its inputs and outputs and whatever a later node
  still needs; the largest sum is the peak. Nothing is fused, nodes run in the order of the file, and weights are apart.
- Views (`Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`, `Identity`) share their input's memory.
- The peak is given twice: with a buffer of its own for every other output, and with activations in place, where a
  `Relu` or its like writes over an input that nobody reads after it and that is not the caller's.
- A multiply-accumulate is 2 floating-point operations, biases not counted; pooling takes one for each value it looks
  at, other arithmetic one for each value it makes, batch norm two, moving values none.
- Bytes moved are weights, inputs and outputs, each once: what a layer takes at least that keeps nothing in a cache.

What stands in front of a network, and normalises pixels or rounds floats to their grid, is left out: the network begins
behind it.

Whatever no image can change, constants and what is computed of them, is weights, with the bytes that are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from cascade.errors import BundleError
from export.pixel_input import bare

VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
MOVES = VIEWS | {"Cast", "Concat", "Expand", "Gather", "Pad", "Shape", "Slice", "Split", "Transpose"}
IN_PLACE = {
    "Clip",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Tanh",
}
SUMS = {"GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum"}
WINDOWS = {"AveragePool", "MaxPool"}
# Where the images and the weights are among the inputs of a layer.
CONVOLUTIONS = {"Conv": (0, 1), "ConvInteger": (0, 1), "ConvTranspose": (0, 1), "QLinearConv": (0, 3)}
PRODUCTS = {"Gemm": 0, "MatMul": 0, "MatMulInteger": 0, "QLinearMatMul": 0}
SCALES = {"DequantizeLinear", "QuantizeLinear"}
LEARNED = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
}


@dataclass(frozen=True)
class Layer:
    """One node that depends on the image.

    Attributes:
        name: its name, or the name of what it makes.
        kind: its operator.
        macs: multiply-accumulates.
        flops: floating-point operations.
        weight_bytes: of the constants it reads, as stored.
        moved_bytes: weights, inputs and outputs.
        live_bytes: activations in memory while it runs, every output in a buffer of its own.
        live_in_place_bytes: the same with activations in place.
    """

    name: str
    kind: str
    macs: int
    flops: int
    weight_bytes: int
    moved_bytes: int
    live_bytes: int
    live_in_place_bytes: int

    @property
    def intensity(self) -> float | None:
        """Floating-point operations a byte; None where nothing moves."""
        return self.flops / self.moved_bytes if self.moved_bytes else None


@dataclass(frozen=True)
class Profile:
    """A whole graph, for one image.

    Attributes:
        params: weights and biases as they are in the file, batch norms folded if they are.
        weight_bytes: of all constants, as stored.
        layers: in the order they run.
    """

    params: int
    weight_bytes: int
    layers: tuple[Layer, ...] = field(repr=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return sum(layer.flops for layer in self.layers)

    @property
    def moved_bytes(self) -> int:
        """Bytes moved by all layers, each for itself."""
        return sum(layer.moved_bytes for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of activations at once, every output in a buffer of its own."""
        return max(layer.live_bytes for layer in self.layers)

    @property
    def peak_in_place_bytes(self) -> int:
        """The same with activations in place."""
        return max(layer.live_in_place_bytes for layer in self.layers)


def profile(model: ModelProto) -> Profile:
    """Walk a graph.

    Args:
        model: one input whose first dimension is the batch; left as it is.

    Raises:
        BundleError: a shape cannot be inferred, a node comes before what it reads, or nothing depends on the image.
    """
    graph = _Graph(bare(model))
    apart, in_place = graph.lifetimes(in_place=False), graph.lifetimes(in_place=True)
    layers = tuple(
        graph.layer(node, live, live_in_place)
        for node, live, live_in_place in zip(graph.nodes, apart, in_place, strict=True)
    )
    return Profile(graph.params, sum(graph.initial.values()), layers)


class _Graph:
    """A graph for a batch of one: the nodes that depend on the image, and the size of everything."""

    def __init__(self, model: ModelProto) -> None:
        _check_order(model.graph)
        graph = _for_one_image(model).graph
        values = [*graph.value_info, *graph.input, *graph.output]
        self._types = {value.name: value.type.tensor_type for value in values}
        self._shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self.initial = {tensor.name: _stored(tensor) for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.initial]
        self.outputs = {value.name for value in graph.output}
        self.constants = dict(self.initial)  # name -> stored bytes
        self.nodes = list(self._split(graph))
        self.params = _params(graph)
        if not self.nodes:
            raise BundleError("graph", "nothing in it depends on the image")

    def _split(self, graph: onnx.GraphProto) -> Iterator[NodeProto]:
        for node in graph.node:
            read = [name for name in node.input if name]
            if all(name in self.constants for name in read):
                self._fold(node, read)
            else:
                yield node

    def _fold(self, node: NodeProto, read: list[str]) -> None:
        """Note what a node makes of constants; its bytes are those that are stored."""
        stored = sum(self.constants[name] for name in read)
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                stored = _stored(attribute.t)
                self.initial[node.output[0]] = stored
                self._shapes[node.output[0]] = list(attribute.t.dims)
        self.constants.update(dict.fromkeys(node.output, stored))

    def shape(self, name: str) -> list[int]:
        """Of a tensor, for one image."""
        if name in self._shapes:
            return self._shapes[name]
        tensor = self._types.get(name)
        if tensor is None or not tensor.HasField("shape") or any(not side.dim_value for side in tensor.shape.dim):
            raise BundleError("graph", f"the shape of {name!r} cannot be inferred")
        return [side.dim_value for side in tensor.shape.dim]

    def size(self, name: str) -> int:
        """Bytes of an activation."""
        return math.prod(self.shape(name)) * _width(self._types[name].elem_type)

    def activations(self, node: NodeProto) -> list[str]:
        """What a node reads that depends on the image, each once."""
        return [name for name in dict.fromkeys(node.input) if name and name not in self.constants]

    def lifetimes(self, *, in_place: bool) -> list[int]:
        """Bytes live at each node."""
        home = self._homes(in_place)
        last = {home[name]: -1 for name in self.inputs}
        for place, node in enumerate(self.nodes):
            for name in (*self.activations(node), *filter(None, node.output)):
                last[home[name]] = place
        last.update({home[name]: len(self.nodes) for name in self.outputs if name in home})
        live = {home[name]: self.size(name) for name in self.inputs}
        found = []
        for place, node in enumerate(self.nodes):
            for name in filter(None, node.output):
                live.setdefault(home[name], self.size(name))
            found.append(sum(live.values()))
            live = {name: size for name, size in live.items() if last[name] > place}
        return found

    def _homes(self, in_place: bool) -> Mapping[str, str]:
        """Which tensor's memory each tensor lies in."""
        home = {name: name for name in self.inputs}
        for node in self.nodes:
            for name in filter(None, node.output):
                home[name] = home[node.input[0]] if node.op_type in VIEWS else name
        if not in_place:
            return home
        last = {home[name]: place for place, node in enumerate(self.nodes) for name in self.activations(node)}
        kept = {home[name] for name in (*self.inputs, *self.outputs) if name in home}
        for place, node in enumerate(self.nodes):
            if node.op_type in IN_PLACE:
                old, new = home[node.input[0]], node.output[0]
                if last[old] == place and old not in kept:
                    home = {name: old if there == new else there for name, there in home.items()}
                    last[old] = last.get(new, place)
                    kept |= {old} if new in kept else set()
        return home

    def layer(self, node: NodeProto, live: int, live_in_place: int) -> Layer:
        """One node with its figures."""
        read, made = self.activations(node), [name for name in node.output if name]
        weights = sum(self.constants[name] for name in dict.fromkeys(node.input) if name in self.constants)
        macs = self._macs(node)
        moves = node.op_type in VIEWS
        return Layer(
            name=node.name or made[0],
            kind=node.op_type,
            macs=macs,
            flops=2 * macs or self._flops(node),
            weight_bytes=weights,
            moved_bytes=0 if moves else weights + sum(map(self.size, (*read, *made))),
            live_bytes=live,
            live_in_place_bytes=live_in_place,
        )

    def _macs(self, node: NodeProto) -> int:
        if node.op_type in CONVOLUTIONS:
            images, weights = (node.input[place] for place in CONVOLUTIONS[node.op_type])
            # a transposed convolution spreads each of its inputs, the others gather for each of their outputs
            many = images if node.op_type == "ConvTranspose" else node.output[0]
            return math.prod(self.shape(many)) * math.prod(self.shape(weights)[1:])
        if node.op_type in PRODUCTS:
            transposed = any(each.name == "transA" and each.i for each in node.attribute)
            return math.prod(self.shape(node.output[0])) * self.shape(node.input[0])[0 if transposed else -1]
        return 0

    def _flops(self, node: NodeProto) -> int:
        if node.op_type in MOVES:
            return 0
        if node.op_type in SUMS:
            return math.prod(self.shape(node.input[0]))
        made = math.prod(self.shape(node.output[0]))
        if node.op_type in WINDOWS:
            return made * next(int(np.prod(each.ints)) for each in node.attribute if each.name == "kernel_shape")
        return made * (2 if node.op_type == "BatchNormalization" else 1)


def _check_order(graph: onnx.GraphProto) -> None:
    known = {each.name for each in [*graph.input, *graph.initializer]}
    for node in graph.node:
        if missing := [name for name in node.input if name and name not in known]:
            raise BundleError("graph", f"{node.op_type} {node.name!r} reads {missing[0]!r} before it is made")
        known.update(node.output)


def _for_one_image(model: ModelProto) -> ModelProto:
    """A copy with batch 1 and the shapes of all that flows in it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # they were inferred for any batch
    constants = {tensor.name for tensor in copy.graph.initializer}
    for value in [*copy.graph.input, *copy.graph.output]:
        if value.name not in constants and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        return shape_inference.infer_shapes(copy, data_prop=True, strict_mode=True)
    except shape_inference.InferenceError as error:
        raise BundleError("graph", f"its shapes cannot be inferred: {' '.join(str(error).split())}") from error


def _params(graph: onnx.GraphProto) -> int:
    """Elements of weights and biases; shapes, axes, scales and zero points are none."""
    scales = {name for node in graph.node if node.op_type in SCALES for name in node.input[1:]}
    tensors = [tensor for tensor in graph.initializer if tensor.name not in scales]
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.dims and tensor.data_type in LEARNED)


def _stored(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * _width(tensor.data_type)


def _width(kind: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
