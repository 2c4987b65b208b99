"""What `cascade.exits`, `cascade.replay` and `cascade.pixels` compute in numpy, as nodes of an ONNX graph.

Types are widened and rounded at the same places, so that results are equal to the last bit: sums of two, products and
comparisons have but one right answer, and exponentials and longer sums, which each library rounds in its own way, are
taken in float64 and rounded to float32.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from cascade.manifest import Preprocess
from cascade.pixels import scale_and_shift
from export.nodes import Nodes


def energy(nodes: Nodes, logits: str) -> str:
    """`cascade.exits.energy`: logits (N, K) float32 -> (N,) float64.

    Source: ResKD, Eq. 8.
    """
    classes = nodes.integers(1)
    wide = nodes.cast(logits, TensorProto.DOUBLE)
    powers = nodes("Exp", nodes("Sub", wide, nodes("ReduceMax", wide, classes, keepdims=1)))
    shares = nodes.cast(nodes("Div", powers, nodes("ReduceSum", powers, classes, keepdims=1)), TensorProto.FLOAT)
    norm = nodes("ReduceSumSquare", nodes.cast(shares, TensorProto.DOUBLE), classes, keepdims=0)
    return nodes.cast(nodes.cast(norm, TensorProto.FLOAT), TensorProto.DOUBLE)


def goes_on(nodes: Nodes, energies: str, threshold: str) -> str:
    """The opposite of `cascade.exits.exits`: (N,) float64 and (N,) or (1,) float64 -> (N,) bool. NaN goes on."""
    return nodes("Not", nodes("Greater", energies, threshold))


def largest(nodes: Nodes, logits: str, name: str) -> str:
    """The argmax of numpy, where the first NaN is largest: (N, K) float32 -> (N,) int64, called `name`."""
    nothing = nodes.cast(nodes("IsNaN", logits), TensorProto.INT32)
    first_nothing = nodes("ArgMax", nothing, axis=1, keepdims=0)
    has_nothing = nodes.cast(nodes("ReduceMax", nothing, nodes.integers(1), keepdims=0), TensorProto.BOOL)
    return nodes("Where", has_nothing, first_nothing, nodes("ArgMax", logits, axis=1, keepdims=0), name=name)


def fitted(nodes: Nodes, pixels: str, rule: Preprocess) -> str:
    """`cascade.pixels.fit`: (N, H, W, 3) uint8 of any size -> (N, 3, S, S) uint8.

    Images of the network's own size stay as they are. Others are resized in uint8 with the weights of Pillow, borders
    included; but onnxruntime goes along rows first, where Pillow begins with the cheaper direction, and rounds some
    sums the other way.

    Args:
        nodes: where they go.
        pixels: name of the images.
        rule: with resize `stretch`.
    """
    planes = nodes("Transpose", pixels, perm=[0, 3, 1, 2])
    filter_ = {"mode": "linear"} if rule.interpolation == "bilinear" else {"mode": "cubic", "cubic_coeff_a": -0.5}
    sizes = nodes("Concat", nodes("Shape", planes, start=0, end=2), nodes.integers(rule.size, rule.size), axis=0)
    return nodes("Resize", planes, "", "", sizes, antialias=1, exclude_outside=1, **filter_)


def normalised(nodes: Nodes, planes: str, rule: Preprocess) -> str:
    """`cascade.pixels.normalise`: (N, 3, S, S) uint8 -> float32, the very same floats."""
    scale, shift = (nodes.constant(np.asarray(each)) for each in scale_and_shift(rule))
    return nodes("Add", nodes("Mul", nodes.cast(planes, TensorProto.FLOAT), scale), shift)
