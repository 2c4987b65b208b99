"""The ONNX files of stages, made ready to be parts of one graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, compose, inliner, version_converter

from cascade.errors import BundleError

OPSET = 18  # the first with an antialiased Resize, and with the axes of every reduction as an input
QUANTISED_OPSET = 19  # the first whose quantised operators ONNX's own reference implements
QUANTISED = {"QuantizeLinear", "DequantizeLinear"}

Shapes = list[tuple[int | None, ...]]


def load(data: bytes, where: str) -> ModelProto:
    """Read an ONNX file whose weights are inside it.

    Args:
        data: the file.
        where: field of the bundle, for messages.

    Raises:
        BundleError: it is none, or refers to other files.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise BundleError(where, f"is not an ONNX file: {error}") from error
    if any(weight.data_location == TensorProto.EXTERNAL for weight in model.graph.initializer):
        raise BundleError(where, "keeps weights outside the file: save it with its weights inside")
    return model


def alike(stages: Sequence[ModelProto]) -> list[ModelProto]:
    """The stages with one opset, without functions, with one input each, and with names that are each its own.

    Raises:
        BundleError: one cannot be converted.
    """
    least = QUANTISED_OPSET if any(_is_quantised(stage) for stage in stages) else OPSET
    opset = max(least, *(_opset(stage) for stage in stages))
    return [_prepared(stage, opset, number) for number, stage in enumerate(stages)]


def _is_quantised(stage: ModelProto) -> bool:
    return any(node.op_type in QUANTISED for body in (stage.graph, *stage.functions) for node in body.node)


def _opset(stage: ModelProto) -> int:
    return max((entry.version for entry in stage.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _prepared(stage: ModelProto, opset: int, number: int) -> ModelProto:
    try:
        plain = inliner.inline_local_functions(stage) if stage.functions else stage
        same = plain if _opset(plain) == opset else version_converter.convert_version(plain, opset)
        part = compose.add_prefix(same, f"stage{number}/")
    except Exception as error:  # the converter's own errors share no public base
        where = f"stages[{number}].file"
        raise BundleError(where, f"cannot be made part of a graph of opset {opset}: {error}") from error
    weights = {weight.name for weight in part.graph.initializer}  # which older files list among the inputs
    inputs = [value for value in part.graph.input if value.name not in weights]
    del part.graph.input[:]
    part.graph.input.extend(inputs)
    return part


def sizes(stages: Sequence[ModelProto], *, of_bytes: bool = False) -> tuple[int, int]:
    """Pixels a side and number of classes, the same in every stage.

    Args:
        stages: each with one input.
        of_bytes: whether they take uint8, and not float32.

    Raises:
        BundleError: a stage is no classifier of images, or not of those that stage 0 is for.
    """
    kind = TensorProto.UINT8 if of_bytes else TensorProto.FLOAT
    found = [_signature(stage.graph, kind) for stage in stages]
    for number, signature in enumerate(found):
        if signature != found[0] or not _is_classifier(*signature):
            raise BundleError(
                f"stages[{number}].file",
                f"maps {signature[0]} to {signature[1]}; a stage maps one [N, 3, S, S] of "
                f"{'uint8' if of_bytes else 'float32'} to one [N, K] of float32, and all stages have the same S and K",
            )
    size, classes = found[0][0][0][3], found[0][1][0][1]
    assert isinstance(size, int)
    assert isinstance(classes, int)
    return size, classes


def _signature(graph: GraphProto, kind: int) -> tuple[Shapes, Shapes]:
    """Shapes of inputs of a kind and of float32 outputs; None for what is open. Another type has no shape."""
    return [_shape(value, kind) for value in graph.input], [_shape(value, TensorProto.FLOAT) for value in graph.output]


def _shape(value: ValueInfoProto, kind: int) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if tensor.elem_type != kind:
        return ()
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)


def _is_classifier(inputs: Shapes, outputs: Shapes) -> bool:
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]) != 4 or len(outputs[0]) != 2:
        return False
    (batch, channels, height, width), (rows, classes) = inputs[0], outputs[0]
    return batch is rows is None and channels == 3 and height == width is not None and classes is not None
