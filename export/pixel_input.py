"""Graphs of stages that take pixels: `Cast(pixels) * scale + shift` in front of the network, put there last.

Where the first layer was quantised on the grid of the pixels (`export.stem`) they go in as they are, and there is no
shift.

Everything else here is made of graphs that take normalised floats; what begins with a bundle takes this off again. The
logits are, on a CPU, to the last bit those of the graph without it on what `cascade.pixels.normalise` gives: the scale
and the shift are the same floats, and a product and a sum have but one right answer.

`shift` is an initialiser that is listed among the graph's inputs, which onnxruntime calls overridable: who has floats
feeds them as `shift`, over pixels of zeros (`cascade.feeds`).
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from cascade.bundle import Bundle, sha256
from cascade.errors import BundleError
from cascade.files import ImageType, Input, Stage
from cascade.manifest import Preprocess
from cascade.pixels import scale_and_shift
from export import stem
from export.parts import load

PIXELS, FLOATS, SCALE, SCALED, SHIFT = "pixels", "pixels/floats", "pixels/scale", "pixels/scaled", "pixels/shift"
NODES, WEIGHTS = 3, 2  # that are put in


def with_pixels(model: ModelProto, rule: Preprocess) -> ModelProto:
    """Let a graph take pixels.

    Args:
        model: its one input is (N, 3, S, S) float32; left as it is.
        rule: with mean and std.

    Returns:
        A model whose inputs are `pixels`, (N, 3, S, S) uint8, and, unless it rounds them to the grid, `pixels/shift`,
        whose default is of (1, 3, 1, 1).
    """
    if stem.rounds_to_grid(model):
        return stem.without_floats(model)
    result = ModelProto()
    result.CopyFrom(model)
    graph, nodes, images = result.graph, list(model.graph.node), model.graph.input[0]
    scale, shift = scale_and_shift(rule)
    del graph.node[:]
    graph.node.extend(
        [
            helper.make_node("Cast", [PIXELS], [FLOATS], name=FLOATS, to=TensorProto.FLOAT),
            helper.make_node("Mul", [FLOATS, SCALE], [SCALED], name=SCALED),
            helper.make_node("Add", [SCALED, SHIFT], [images.name], name=PIXELS),
            *nodes,
        ]
    )
    graph.initializer.extend([numpy_helper.from_array(scale, SCALE), numpy_helper.from_array(shift, SHIFT)])
    graph.value_info.append(images)  # with the batch's name: what is added has another, and shortcuts fuse by it
    del graph.input[:]
    pixels = ValueInfoProto()
    pixels.CopyFrom(images)
    pixels.name, pixels.type.tensor_type.elem_type = PIXELS, TensorProto.UINT8
    any_shift = helper.make_tensor_value_info(SHIFT, TensorProto.FLOAT, ["rows", 3, "height", "width"])
    graph.input.extend([pixels, any_shift])
    checker.check_model(result, full_check=True)
    return result


def without_pixels(model: ModelProto) -> ModelProto:
    """Take off what normalises pixels, exactly; a model that has nothing of it is given back.

    Args:
        model: left as it is.
    """
    if [value.name for value in model.graph.input] != [PIXELS, SHIFT]:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    images = graph.value_info.pop()
    del graph.node[:NODES], graph.initializer[-WEIGHTS:], graph.input[:]
    graph.input.append(images)
    return result


def bare(model: ModelProto) -> ModelProto:
    """The network alone, which is what its costs are of: without what normalises pixels or brings floats to their grid.

    Args:
        model: left as it is.
    """
    return stem.without_floats(model) if stem.rounds_to_grid(model) else without_pixels(model)


def taking_floats(model: ModelProto, rule: Preprocess) -> ModelProto:
    """A graph that takes normalised images, of one that takes them or pixels.

    Args:
        model: left as it is.
        rule: with mean and std.
    """
    return stem.with_floats(model, rule) if stem.takes_grid(model) else without_pixels(model)


def taking(bundle: Bundle, kind: ImageType) -> Bundle:
    """The same bundle with graphs that take this type; digests follow, and everything else stays.

    Args:
        bundle: with graphs of either kind; those of this one stay as they are.
        kind: `uint8`, pixels, or `float32`, normalised images.

    Raises:
        BundleError: a graph cannot be read, or has an input of a kind that was not made here.
    """
    rule = bundle.manifest.preprocess
    changed = [
        _taking(kind, stage, model, rule, f"stages[{number}]")
        for number, (stage, model) in enumerate(zip(bundle.manifest.stages, bundle.models, strict=True))
    ]
    manifest = bundle.manifest.model_copy(update={"stages": tuple(stage for stage, _ in changed)})
    return Bundle(manifest, tuple(model for _, model in changed), bundle.golden, bundle.fused)


def _taking(kind: ImageType, stage: Stage, data: bytes, rule: Preprocess, where: str) -> tuple[Stage, bytes]:
    if stage.input.dtype == kind:
        return stage, data
    before = load(data, f"{where}.file")
    own = [[PIXELS, SHIFT], [PIXELS]] if stage.input.dtype == "uint8" else [[stage.input.name]]
    if (found := [value.name for value in before.graph.input]) not in own:
        raise BundleError(
            f"{where}.file", f"has the inputs {', '.join(found)}: only graphs that rescade made can take {kind} instead"
        )
    model = with_pixels(before, rule) if kind == "uint8" else taking_floats(before, rule)
    names = [value.name for value in model.graph.input]
    new: bytes = model.SerializeToString()
    input_ = Input(name=names[0], shape=stage.input.shape, dtype=kind, shift=SHIFT if SHIFT in names else None)
    return stage.model_copy(update={"input": input_, "sha256": sha256(new)}), new
