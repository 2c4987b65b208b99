"""One stage's graph in another precision: float16, or int8 by static quantisation. Images and logits stay float32.

int8 is QDQ: unsigned 8-bit activations with ranges fixed at export, so that no sample's logits depend on its batch, and
signed weights with a scale a channel. Products of unsigned by signed bytes are what x86's VNNI multiplies; signed by
signed falls back to code that is slower than float.

Where onnxruntime has no VNNI it adds pairs of such products in 16 bits, which saturate: weights of 7 bits cannot make
them, so that a bundle gives the same integers on every machine.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from cascade.files import Quantiser
from cascade.manifest import Preprocess
from cascade.pixels import to_grid
from export import stem
from export.session import Array
from export.shortcuts import as_convolutions, merge_slices

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
BATCH = 100
# What may stand between the last map and the logits.
HEAD = {"Gemm", "MatMul", "Flatten", "Reshape", "Squeeze", "ReduceMean", "GlobalAveragePool", "Identity"}


def optimised(model: bytes) -> bytes:
    """The same float32 graph with its shortcuts written for a runtime; the same logits, to the last bit.

    onnxruntime's own offline optimisation is not used: `basic` finds nothing to do in these graphs, whose batch norms
    are folded already, and `extended` writes operators of its own that other runtimes do not have. A session does both
    when it opens a file, and what suits the machine besides.
    """
    return _bytes(merge_slices(onnx.load_model_from_string(model)))


def to_fp16(model: bytes) -> bytes:
    """Weights and activations in float16, with a Cast behind the images and one before the logits.

    Args:
        model: float32.
    """
    with _quiet():
        converted = ONNXModel(convert_float_to_float16(onnx.load_model_from_string(model), keep_io_types=True))
    converted.topological_sort()  # the converter puts every Cast last
    return _bytes(converted.model)


def to_int8(model: bytes, images: Array, options: Quantiser, rule: Preprocess) -> bytes:
    """Quantise statically.

    Args:
        model: float32.
        images: (N, 3, S, S) float32, preprocessed, from training; the ranges of activations are taken from them.
        options: method, bits, and what stays in float.
        rule: by which the images are normalised.
    """
    plain = _named(as_convolutions(merge_slices(onnx.load_model_from_string(model))))
    extra: dict[str, Any] = {"CalibPercentile": options.percentile} if options.percentile is not None else {}
    if on_pixels := "stem" not in options.in_float and stem.stem_of(plain) is not None:
        plain, grid = stem.widened(plain, rule), stem.Grid.of(rule)
        images = grid.values(to_grid(images, rule))
        bytes_ = {"scale": np.array(1, np.float32), "zero_point": np.array(grid.zero, np.uint8)}
        extra["TensorQuantOverrides"] = {plain.graph.input[0].name: [bytes_]}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            plain,
            path,
            _Images(plain.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=options.weight_bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(_in_float(plain.graph, options)),
            calibrate_method=METHODS[options.method],
            extra_options=extra,
        )
        quantised = onnx.load_model(path)
    quantised.producer_name, quantised.producer_version = "rescade", ""
    del quantised.metadata_props[:]
    del quantised.graph.value_info[:]
    return _bytes(stem.on_grid(quantised, rule) if on_pixels else quantised)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images, a batch at a time."""

    def __init__(self, name: str, images: Array) -> None:
        self._batches = iter([{name: images[start : start + BATCH]} for start in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, Array] | None:
        """The next batch; None at the end."""
        return next(self._batches, None)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a name for every node: the quantiser leaves nodes out by name."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def _in_float(graph: onnx.GraphProto, options: Quantiser) -> set[str]:
    """Names of the nodes that are not quantised."""
    names: set[str] = set()
    if "stem" in options.in_float:
        names |= {node.name for node in graph.node if graph.input[0].name in node.input}
    if "additions" in options.in_float:
        names |= {node.name for node in graph.node if node.op_type == "Add"}
    if "classifier" in options.in_float:
        makers = {name: node for node in graph.node for name in node.output}
        node = makers.get(graph.output[0].name)
        while node is not None and node.op_type in HEAD:
            names.add(node.name)
            node = makers.get(node.input[0])
    return names


def _bytes(model: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice, prints its progress and warns about its own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
