"""A whole cascade as one ONNX graph: sample-adaptive inference for whoever has no rescade at hand.

The first student runs on the whole batch. For each later stage the graph finds the rows that go on; inside an `If`,
which is skipped where none does, it gathers their images, runs the stage on them alone, and scatters sums and energies
back. The branches stand side by side and not within each other, so that a cascade may have as many stages as a manifest
allows: protobuf reads messages no more than a hundred deep, which is some thirty nested stages.

A stage's weights are initialisers of its own branch. Where they lie in the outer graph, onnxruntime does not treat them
as constants when it optimises the branch, and fuses nothing.

Source: ResKD, Algorithm 2, with its order of steps put right (`cascade.replay`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import (
    GraphProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    checker,
    compose,
    helper,
    inliner,
    version_converter,
)

from cascade.combine import EnergyDefinition
from cascade.errors import BundleError
from cascade.manifest import Preprocess
from export.arithmetic import energy, goes_on, largest, network_input
from export.nodes import Nodes

OPSET = 18  # the first with an antialiased Resize, and with the axes of every reduction as an input
IMAGES, THRESHOLD = "images", "threshold"
LOGITS, LABEL, EXIT_STAGE, ENERGY = "logits", "label", "exit_stage", "energy"


class Rows(NamedTuple):
    """Names of what a graph knows of its N samples: images (N, 3, S, S), summed logits (N, K), energies (N,)."""

    images: str
    logits: str
    energy: str


def fuse(
    stages: Sequence[ModelProto],
    definition: EnergyDefinition,
    *,
    pixels: Preprocess | None = None,
    notes: Mapping[str, str] | None = None,
) -> ModelProto:
    """Make one graph of a cascade's stages.

    Inputs: `images`, (N, 3, S, S) float32, or with `pixels` (N, H, W, 3) uint8; `threshold`, (A, B) float64, where A is
    1 or N (one for all samples, or one each), and B is 1 or the number of stages but the last (one for all stages, or
    one each). Outputs: `logits`, (N, K) float32, the sum of the stages that ran; `label`, (N,) int64, its argmax;
    `exit_stage`, (N,) int32; `energy`, (N,) float64, the one that was known there.

    Args:
        stages: the first student and the res-students in order; each turns images (N, 3, S, S) into logits (N, K),
            both float32.
        definition: of the energy.
        pixels: put this preprocessing into the graph.
        notes: metadata of the file.

    Raises:
        BundleError: a stage is not like that, or `pixels` has another rule than `stretch`.
    """
    if pixels is not None and pixels.resize != "stretch":
        raise BundleError("preprocess.resize", f"{pixels.resize!r} cannot be put into a graph: only 'stretch' can")
    models = _alike(stages)
    size, classes = _sizes(models)
    nodes = Nodes()
    images = IMAGES if pixels is None else network_input(nodes, IMAGES, pixels)
    logits = nodes.embed(models[0].graph, images)
    rows = Rows(images, logits, energy(nodes, logits))
    limits = _limits(nodes, len(models) - 1)
    zero = helper.make_tensor("zero", TensorProto.INT32, [1], [0])
    left, going = nodes("ConstantOfShape", nodes("Shape", rows.energy), value=zero), ""
    for number, (model, limit) in enumerate(zip(models[1:], limits, strict=True), start=1):
        stays = goes_on(nodes, rows.energy, limit)
        going = nodes("And", going, stays) if going else stays
        left = nodes("Add", left, nodes.cast(going, TensorProto.INT32))
        rows = _with_stage(nodes, number, model, rows, going, definition)
    nodes("Identity", rows.logits, name=LOGITS)
    largest(nodes, rows.logits, name=LABEL)
    nodes("Identity", left, name=EXIT_STAGE)
    nodes("Identity", rows.energy, name=ENERGY)
    return _finished(_signed(nodes, size, classes, of_pixels=pixels is not None), models, notes or {})


def _with_stage(
    nodes: Nodes, number: int, model: ModelProto, rows: Rows, going: str, definition: EnergyDefinition
) -> Rows:
    """Run a stage on the rows that go on, if there are any."""
    places = nodes("NonZero", going)
    some = nodes.cast(nodes("Size", places), TensorProto.BOOL)
    then = Nodes(f"join{number}/")
    at = then("Transpose", places, perm=[1, 0])
    images, before, scores = (then("GatherND", each, at) for each in rows)
    residual = then.embed(model.graph, images)
    total = then("Add", before, residual)
    score = energy(then, total) if definition == "summed" else then("Add", scores, energy(then, residual))
    sums = [then("ScatterND", old, at, new) for old, new in ((rows.logits, total), (rows.energy, score))]
    otherwise = Nodes(f"skip{number}/")
    same = [otherwise("Identity", each) for each in (rows.logits, rows.energy)]
    names = [f"{LOGITS}_{number}", f"{ENERGY}_{number}"]
    nodes(
        "If",
        some,
        outputs=names,
        then_branch=then.graph(f"stage{number}", [], _sums(*sums)),
        else_branch=otherwise.graph(f"no_stage{number}", [], _sums(*same)),
    )
    return Rows(rows.images, *names)


def _sums(logits: str, energies: str) -> list[ValueInfoProto]:
    """The outputs of a branch."""
    return [
        helper.make_tensor_value_info(logits, TensorProto.FLOAT, [None, None]),
        helper.make_tensor_value_info(energies, TensorProto.DOUBLE, [None]),
    ]


def _limits(nodes: Nodes, count: int) -> list[str]:
    """The threshold of each stage but the last, (A,) each."""
    if count < 2:
        return [nodes("Squeeze", THRESHOLD, nodes.integers(1))] * count
    columns = nodes("Expand", THRESHOLD, nodes.integers(1, count))
    return [nodes("Gather", columns, nodes.constant(np.array(column, np.int64)), axis=1) for column in range(count)]


def _signed(nodes: Nodes, size: int, classes: int, *, of_pixels: bool) -> GraphProto:
    """The graph with its inputs and outputs."""
    value = helper.make_tensor_value_info
    images = (
        value(IMAGES, TensorProto.UINT8, ["N", "H", "W", 3])
        if of_pixels
        else value(IMAGES, TensorProto.FLOAT, ["N", 3, size, size])
    )
    return nodes.graph(
        "cascade",
        [images, value(THRESHOLD, TensorProto.DOUBLE, ["A", "B"])],
        [
            value(LOGITS, TensorProto.FLOAT, ["N", classes]),
            value(LABEL, TensorProto.INT64, ["N"]),
            value(EXIT_STAGE, TensorProto.INT32, ["N"]),
            value(ENERGY, TensorProto.DOUBLE, ["N"]),
        ],
    )


def _finished(graph: GraphProto, stages: Sequence[ModelProto], notes: Mapping[str, str]) -> ModelProto:
    """The graph as a file that passes ONNX's own checker."""
    opsets = {entry.domain: entry for stage in stages for entry in stage.opset_import}
    model = helper.make_model(graph, producer_name="rescade", opset_imports=list(opsets.values()))
    model.ir_version = max(stage.ir_version for stage in stages)
    helper.set_model_props(model, dict(notes))
    checker.check_model(model, full_check=True)
    return model


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


def _alike(stages: Sequence[ModelProto]) -> list[ModelProto]:
    """The stages with one opset, without functions, and with names that differ from each other's."""
    opset = max(OPSET, *(_opset(stage) for stage in stages))
    return [_prepared(stage, opset, number) for number, stage in enumerate(stages)]


def _opset(stage: ModelProto) -> int:
    return max((entry.version for entry in stage.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _prepared(stage: ModelProto, opset: int, number: int) -> ModelProto:
    try:
        plain = inliner.inline_local_functions(stage) if stage.functions else stage
        same = plain if _opset(plain) == opset else version_converter.convert_version(plain, opset)
        return compose.add_prefix(same, f"stage{number}/")
    except Exception as error:  # the converter's own errors share no public base
        where = f"stages[{number}].file"
        raise BundleError(where, f"cannot be made part of a graph of opset {opset}: {error}") from error


def _sizes(stages: Sequence[ModelProto]) -> tuple[int, int]:
    """Pixels a side and number of classes, the same in every stage."""
    found = [_signature(stage.graph) for stage in stages]
    for number, signature in enumerate(found):
        if signature != found[0] or not _is_classifier(*signature):
            raise BundleError(
                f"stages[{number}].file",
                f"maps {signature[0]} to {signature[1]}; a stage maps one [N, 3, S, S] of float32 to one [N, K], and "
                "all stages have the same S and K",
            )
    size, classes = found[0][0][0][3], found[0][1][0][1]
    assert isinstance(size, int)
    assert isinstance(classes, int)
    return size, classes


Shapes = list[tuple[int | None, ...]]


def _signature(graph: GraphProto) -> tuple[Shapes, Shapes]:
    """Shapes of inputs and outputs; None for what is open. Another type than float32 has no shape."""
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    return [_shape(value) for value in inputs], [_shape(value) for value in graph.output]


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        return ()
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)


def _is_classifier(inputs: Shapes, outputs: Shapes) -> bool:
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]) != 4 or len(outputs[0]) != 2:
        return False
    (batch, channels, height, width), (rows, classes) = inputs[0], outputs[0]
    return batch is rows is None and channels == 3 and height == width is not None and classes is not None
