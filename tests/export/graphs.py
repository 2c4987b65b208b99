"""ONNX files with one fault each, and a bundle around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cascade.bundle import write
from cascade.exits import Floats
from tests.builders import onnx_model, tiny_macs, tiny_manifest

SIZE, CLASSES = 8, 4
IMAGES: tuple[int | str, ...] = ("N", 3, SIZE, SIZE)
LOGITS: tuple[int | str, ...] = ("N", CLASSES)


def classifier(
    *last: onnx.NodeProto,
    images: Sequence[int | str] = IMAGES,
    logits: Sequence[int | str] = LOGITS,
    kind: int = TensorProto.FLOAT,
    inputs: Sequence[str] = ("image",),
    **constants: Any,
) -> bytes:
    """Images, flattened, times random weights, is `scores`; the nodes given turn that into `logits`."""
    weights = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, CLASSES)).astype(np.float32) / SIZE
    arrays = {"weights": weights, **{name: np.asarray(value) for name, value in constants.items()}}
    nodes = [
        helper.make_node("Flatten", [inputs[0]], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        *(last or [helper.make_node("Identity", ["scores"], ["logits"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "crafted",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, images) for name in inputs],
        [helper.make_tensor_value_info("logits", kind, logits)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def bundle_with(folder: Path, model: bytes) -> Path:
    """A bundle on disk whose second stage is `model`."""
    models = [onnx_model(0), model]
    manifest = tiny_manifest(models, macs=[tiny_macs(), 3 * SIZE * SIZE * CLASSES])
    write(folder, manifest, {f"stage{number}.onnx": data for number, data in enumerate(models)})
    return folder


def lookup(table: Floats) -> onnx.ModelProto:
    """A stage whose logits for an image are the row of `table` (rows, K) that the image's first pixel names.

    What names no row fails, so that a run on images that should have left is noticed.
    """
    arrays: dict[str, NDArray[Any]] = {
        "table": table,
        "start": np.zeros(3, np.int64),
        "end": np.ones(3, np.int64),
        "axes": np.array([1, 2, 3]),
    }
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "axes"], ["pixel"]),
        helper.make_node("Squeeze", ["pixel", "axes"], ["value"]),
        helper.make_node("Cast", ["value"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", table.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
