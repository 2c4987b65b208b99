"""The convolution that reads the images, for int8: on the grid of the pixels, which are bytes already.

Normalised images are bytes that were scaled and shifted a channel at a time. A stem that is quantised like any other
layer makes floats of them, normalises, and rounds to bytes again, of another grid, whose scale is one for all channels.
Here its weights take the scale in, and the bytes go into it as they came, exactly.

The shift cannot go into the bias, since the border of zeros would be shifted too. So there is a fourth channel, the
same everywhere inside the image and zero outside, whose weights are what the shift comes to: the convolution stays the
very function that it was. Four channels are also what an int8 kernel reads at once; three it would take one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from cascade.errors import BundleError
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, grid_scale_and_shift, scale_and_shift

PIXELS, IMAGES = "pixels", "images"
SCALE, SHIFT, ONE, ZERO = "grid/scale", "grid/shift", "grid/one", "grid/zero"
SCALED, FLOATS, PADDED, PADS, INSIDE = "grid/scaled", "grid/floats", "grid/padded", "grid/pads", "grid/inside"
# What brings floats to the grid: the first nodes, and the last weights.
ADDED = [SCALED, FLOATS, PIXELS], [SCALE, SHIFT, ONE, ZERO]
FIELD = "quantiser"
ELSE = "the quantiser works otherwise than is known here; leave the stem in float"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Which byte stands for zero, and which is the fourth channel's.

    Attributes:
        zero: the byte nearest to the mean colour, so that the shift that is left, and the fourth channel's weights, are
            small.
        inside: the byte farthest from it.
    """

    zero: int
    inside: int

    @classmethod
    def of(cls, rule: Preprocess) -> Grid:
        """The grid for images that are normalised by a rule."""
        zero = int(np.clip(round(255 * float(np.mean(rule.mean))), 0, 255))
        return cls(zero, 255 if zero < 128 else 0)

    def values(self, pixels: Pixels) -> Floats:
        """What the stem's four channels stand for, (N, 4, S, S), of pixels (N, 3, S, S)."""
        rows = np.pad(pixels, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=self.inside)
        return rows.astype(np.float32) - np.float32(self.zero)


def stem_of(model: ModelProto) -> NodeProto | None:
    """The one convolution that reads the images, of all their channels at once; None if that is not how it is.

    Raises:
        BundleError: it has not one input.
    """
    images = _images(model)
    readers = [node for node in model.graph.node if images.name in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return None
    kernel = _kernel(model, readers[0])
    users = [node for node in model.graph.node if readers[0].input[1] in node.input]
    return readers[0] if kernel is not None and kernel.dims[1] == 3 and len(users) == 1 else None


def _images(model: ModelProto) -> ValueInfoProto:
    if len(model.graph.input) != 1:
        names = ", ".join(value.name for value in model.graph.input) or "none"
        raise BundleError(FIELD, f"the graph must have one input, the images, and has {names}")
    images: ValueInfoProto = model.graph.input[0]
    return images


def _kernel(model: ModelProto, stem: NodeProto) -> TensorProto | None:
    return next((tensor for tensor in model.graph.initializer if tensor.name == stem.input[1]), None)


def widened(model: ModelProto, rule: Preprocess) -> ModelProto:
    """The same function of `Grid.values` instead of normalised images.

    Args:
        model: in float32, with a stem as `stem_of` finds it; left as it is.
        rule: by which its images are normalised.

    Raises:
        BundleError: it has no such stem.
    """
    result = ModelProto()
    result.CopyFrom(model)
    stem, grid = stem_of(result), Grid.of(rule)
    kernel = None if stem is None else _kernel(result, stem)
    if kernel is None:
        raise BundleError(FIELD, "no convolution of three channels alone reads the images: leave the stem in float")
    scale, shift = (each.astype(np.float64) for each in scale_and_shift(rule))
    weights = numpy_helper.to_array(kernel).astype(np.float64)
    rest = (weights * (shift + grid.zero * scale)).sum(1, keepdims=True) / (grid.inside - grid.zero)
    wide = np.concatenate([weights * scale, rest], 1).astype(np.float32)
    kernel.CopyFrom(numpy_helper.from_array(wide, kernel.name))
    _images(result).type.tensor_type.shape.dim[1].dim_value = 4
    return result


def on_grid(model: ModelProto, rule: Preprocess) -> ModelProto:
    """Let a quantised graph of `Grid.values` take normalised images, through bytes.

    Args:
        model: what became of a `widened` one; its images are quantised with scale 1 and the grid's zero. Changed.
        rule: by which images are normalised.

    Raises:
        BundleError: its images are quantised otherwise.
    """
    graph, grid, images = model.graph, Grid.of(rule), _images(model)
    rounding = _rounding(model, grid)
    padding = helper.make_node("Pad", [PIXELS, PADS, INSIDE], [rounding.output[0]], name=PADDED)
    graph.node.remove(rounding)
    graph.node.insert(0, padding)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1, 0, 0]), PADS),
            numpy_helper.from_array(np.array(grid.inside, np.uint8), INSIDE),
        ]
    )
    images.name = PIXELS
    images.type.tensor_type.elem_type = TensorProto.UINT8
    images.type.tensor_type.shape.dim[1].dim_value = 3
    return with_floats(model, rule)


def _rounding(model: ModelProto, grid: Grid) -> NodeProto:
    """The node that makes bytes of the images: it alone reads them, and by the grid's scale and zero."""
    images = _images(model)
    readers: list[NodeProto] = [node for node in model.graph.node if images.name in node.input]
    if [node.op_type for node in readers] != ["QuantizeLinear"]:
        kinds = ", ".join(node.op_type for node in readers) or "nothing"
        raise BundleError(FIELD, f"one QuantizeLinear must read the images, not {kinds}: {ELSE}")
    [rounding] = readers
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [numpy_helper.to_array(weights[name]).tolist() for name in rounding.input[1:] if name in weights]
    if found != [1.0, grid.zero]:
        raise BundleError(FIELD, f"the images must have scale 1 and zero {grid.zero}, and have {found}: {ELSE}")
    return rounding


def takes_grid(model: ModelProto) -> bool:
    """Whether a graph takes pixels alone, as `without_floats` leaves one."""
    return [value.name for value in model.graph.input] == [PIXELS]


def rounds_to_grid(model: ModelProto) -> bool:
    """Whether a graph takes normalised images and brings them to the grid first, as `with_floats` leaves one."""
    nodes, weights = ADDED
    return (
        [node.name for node in model.graph.node[: len(nodes)]] == nodes
        and [tensor.name for tensor in model.graph.initializer[-len(weights) :]] == weights
        and len(model.graph.input) == 1
    )


def with_floats(model: ModelProto, rule: Preprocess) -> ModelProto:
    """Let a graph that takes pixels alone take normalised images, which it rounds to the grid.

    Args:
        model: left as it is.
        rule: by which they are normalised.

    Raises:
        BundleError: it takes something beside the pixels.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph, nodes = result.graph, list(result.graph.node)
    scale, shift = grid_scale_and_shift(rule)
    del graph.node[:]
    graph.node.extend(
        [
            helper.make_node("Mul", [IMAGES, SCALE], [SCALED], name=SCALED),
            helper.make_node("Add", [SCALED, SHIFT], [FLOATS], name=FLOATS),
            helper.make_node("QuantizeLinear", [FLOATS, ONE, ZERO], [PIXELS], name=PIXELS),
            *nodes,
        ]
    )
    added: dict[str, NDArray[Any]] = {
        SCALE: scale,
        SHIFT: shift,
        ONE: np.array(1, np.float32),
        ZERO: np.array(0, np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in added.items())
    images = _images(result)
    images.name = IMAGES
    images.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(result, full_check=True)
    return result


def without_floats(model: ModelProto) -> ModelProto:
    """Undo `with_floats`, exactly.

    Args:
        model: left as it is.

    Raises:
        BundleError: it is not as `with_floats` leaves one.
    """
    if not rounds_to_grid(model):
        raise BundleError(FIELD, "the graph does not begin with what rounds floats to the grid of the pixels")
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes, weights = ADDED
    del graph.node[: len(nodes)], graph.initializer[-len(weights) :]
    images = _images(result)
    images.name = PIXELS
    images.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.checker.check_model(result, full_check=True)
    return result
