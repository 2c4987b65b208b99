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
from onnx import (
    GraphProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
)

from cascade.combine import EnergyDefinition
from cascade.errors import BundleError
from cascade.manifest import Preprocess
from export import stem
from export.arithmetic import energy, fitted, goes_on, largest, normalised
from export.nodes import Nodes
from export.parts import alike, sizes

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
        pixels: put this preprocessing into the graph. Where every stage would round its images to the grid of the
            pixels (`export.stem`), bytes go straight in, which comes to the same exactly.
        notes: metadata of the file.

    Raises:
        BundleError: a stage is not like that, or `pixels` has another rule than `stretch`.
    """
    if pixels is not None and pixels.resize != "stretch":
        raise BundleError("preprocess.resize", f"{pixels.resize!r} cannot be put into a graph: only 'stretch' can")
    of_bytes = pixels is not None and all(stem.rounds_to_grid(stage) for stage in stages)
    models = alike([stem.without_floats(stage) for stage in stages] if of_bytes else stages)
    size, classes = sizes(models, of_bytes=of_bytes)
    nodes, images = Nodes(), IMAGES
    if pixels is not None:
        planes = fitted(nodes, IMAGES, pixels)
        images = planes if of_bytes else normalised(nodes, planes, pixels)
    nodes("Identity", images, name=models[0].graph.input[0].name)
    logits = _embedded(nodes, models[0], "N")
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
    then("GatherND", rows.images, at, name=model.graph.input[0].name)
    before, scores = (then("GatherND", each, at) for each in (rows.logits, rows.energy))
    residual = _embedded(then, model, f"rows{number}")
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


def _embedded(nodes: Nodes, model: ModelProto, rows: str) -> str:
    """Put a network where its input has been made, and name the count of rows; gives the name of its logits.

    Without a name for that count, onnxruntime cannot know that both sides of an addition have the same shape, and does
    not fuse the shortcuts of a network whose channels are no multiple of its blocks.
    """
    images = ValueInfoProto()
    images.CopyFrom(model.graph.input[0])
    images.type.tensor_type.shape.dim[0].dim_param = rows
    nodes.shaped(images)
    return nodes.embed(model.graph)


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
    least = helper.find_min_ir_version_for(list(opsets.values()), ignore_unknown=True)
    model.ir_version = max(least, *(stage.ir_version for stage in stages))
    helper.set_model_props(model, dict(notes))
    checker.check_model(model, full_check=True)
    return model
