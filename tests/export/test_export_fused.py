"""One graph answers what replay answers, to the last bit, and runs no more than it has to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cascade.combine import EnergyDefinition
from cascade.errors import BundleError
from cascade.exits import Floats, energy
from cascade.replay import Replay, replay
from export.fused import fuse
from export.parts import load
from export.session import Session, opened
from export.staged import staged
from export.whole import Whole
from tests.builders import FakeRuntime, onnx_model, random_inputs
from tests.export.graphs import classifier, lookup

pytestmark = pytest.mark.train

NAN, INFINITY = float("nan"), float("inf")
DEFINITIONS: list[EnergyDefinition] = ["summed", "accumulated"]
SAMPLES = 64


@functools.cache
def tables(stages: int) -> list[Floats]:
    """Logits of every stage, over which energies spread."""
    random = np.random.default_rng(stages)
    spread = random.uniform(0, 4, (SAMPLES, 1))
    return [(random.normal(size=(SAMPLES, 5)) * spread).astype(np.float32) for _ in range(stages)]


def whole(stage_tables: Sequence[Floats], definition: EnergyDefinition = "summed") -> Whole:
    return Whole(fuse([lookup(table) for table in stage_tables], definition).SerializeToString())


@functools.cache
def cascade_of(stages: int, definition: EnergyDefinition) -> Whole:
    return whole(tables(stages), definition)


def same(expected: Replay, found: Replay) -> bool:
    return all(
        np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        for ours, theirs in (
            (expected.logits, found.logits),
            (expected.classes, found.classes),
            (expected.stages, found.stages),
            (expected.energies, found.energies),
        )
    )


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.5, 0.7, 0.9, 1.5, 9.0, INFINITY, NAN])
def test_every_answer_is_replays_to_the_last_bit(stages: int, definition: EnergyDefinition, threshold: float) -> None:
    expected = replay(tables(stages), threshold, definition)
    found = cascade_of(stages, definition).run(FakeRuntime.images(range(SAMPLES)), threshold)
    assert same(expected, found)


@pytest.mark.parametrize("batch", range(1, SAMPLES + 1))
def test_a_batch_of_any_size_gets_its_own_samples_answers(batch: int) -> None:
    rows = np.random.default_rng(batch).permutation(SAMPLES)[:batch]
    found = cascade_of(3, "summed").run(FakeRuntime.images(rows.tolist()), 0.7)
    assert same(replay([table[rows] for table in tables(3)], 0.7), found)


LOGITS = arrays.arrays(
    np.float32, (6, 4), elements=st.floats(-30, 30, width=32) | st.sampled_from([NAN, INFINITY, -INFINITY, 3e38, 0.0])
)


@settings(max_examples=40, deadline=None)
@given(st.lists(LOGITS, min_size=1, max_size=3), st.floats(0, 1.2), st.sampled_from(DEFINITIONS))
def test_logits_that_are_no_numbers_are_treated_as_replay_treats_them(
    stage_tables: list[Floats], threshold: float, definition: EnergyDefinition
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        expected = replay(stage_tables, threshold, definition)
    assert same(expected, whole(stage_tables, definition).run(FakeRuntime.images(range(6)), threshold))


def test_an_energy_equal_to_the_threshold_goes_on() -> None:
    energies = energy(tables(2)[0])
    place = int(np.argsort(energies)[SAMPLES // 2])
    image = FakeRuntime.images([place])
    cascade = cascade_of(2, "summed")
    assert cascade.run(image, float(energies[place])).stages.tolist() == [1]
    assert cascade.run(image, float(np.nextafter(energies[place], 0))).stages.tolist() == [0]


def answers(stages: int, images: Floats, threshold: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    model = fuse([lookup(table) for table in tables(stages)], "summed")
    session = opened(model.SerializeToString(), "fused")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images, "threshold": threshold}), strict=True))


def test_each_sample_may_have_a_threshold_of_its_own() -> None:
    thresholds = np.random.default_rng(0).uniform(0.2, 1.1, SAMPLES)
    found = answers(3, FakeRuntime.images(range(SAMPLES)), thresholds[:, np.newaxis])
    alone = [
        replay([table[[row]] for table in tables(3)], threshold).stages[0] for row, threshold in enumerate(thresholds)
    ]
    assert found["exit_stage"].tolist() == alone
    assert set(alone) == {0, 1, 2}


def test_each_stage_but_the_last_may_have_a_threshold_of_its_own() -> None:
    found = answers(4, FakeRuntime.images(range(SAMPLES)), np.array([[0.9, 0.5, 0.95]]))
    logits, stages = tables(4)[0].copy(), np.zeros(SAMPLES, np.int64)
    going = np.full(SAMPLES, True)
    for stage, threshold in enumerate((0.9, 0.5, 0.95), start=1):
        going &= ~(energy(logits) > threshold)
        logits[going] += tables(4)[stage][going]
        stages[going] = stage
    assert found["exit_stage"].tolist() == stages.tolist()
    assert np.array_equal(found["logits"], logits)


def test_types_and_shapes_are_those_that_are_stated() -> None:
    found = answers(2, FakeRuntime.images(range(3)), np.array([[0.7]]))
    assert {name: (value.dtype.name, value.shape) for name, value in found.items()} == {
        "logits": ("float32", (3, 5)),
        "label": ("int64", (3,)),
        "exit_stage": ("int32", (3,)),
        "energy": ("float64", (3,)),
    }


def test_a_stage_runs_on_those_alone_that_go_on_and_not_at_all_where_none_does() -> None:
    sure, unsure = [[9.0, 0, 0]] * 2, [[0.0, 0, 0]] * 2
    first = np.array(unsure + sure, np.float32)
    cascade = whole([first, first[:2], first[:1]])  # rows that have left are in no table of a later stage
    assert cascade.run(FakeRuntime.images([3, 0, 2]), 0.9).stages.tolist() == [0, 2, 0]
    assert cascade.run(FakeRuntime.images([2, 3]), 0.9).stages.tolist() == [0, 0]
    with pytest.raises(BundleError, match="cannot run it on a batch of 2"):
        cascade.run(FakeRuntime.images([2, 3]), 1.1)


def test_the_longest_cascade_that_a_manifest_allows_can_be_read_and_run() -> None:
    table = np.full((1, 3), 0.25, np.float32)
    model = fuse([lookup(table)] * 64, "summed").SerializeToString()
    assert len(onnx.load_model_from_string(model).graph.node) > 64
    assert Whole(model).run(FakeRuntime.images([0]), 1.0).stages.tolist() == [63]


def real(stages: int) -> list[bytes]:
    return [onnx_model(seed) for seed in range(stages)]


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_networks_answer_in_one_graph_what_they_answer_one_by_one(stages: int, definition: EnergyDefinition) -> None:
    images = random_inputs(40)
    logits = [Session(model, "stage").run(images) for model in real(stages)]
    fused = Whole(fuse([load(model, "stage") for model in real(stages)], definition).SerializeToString())
    for threshold in (-1.0, 0.6, 0.9, 1.4, INFINITY):
        expected, found = replay(logits, threshold, definition), fused.run(images, threshold)
        assert found.stages.tolist() == expected.stages.tolist()
        assert found.classes.tolist() == expected.classes.tolist()
        assert np.allclose(found.logits, expected.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("threshold", [-1.0, 0.6, 0.9, INFINITY])
def test_stages_run_one_by_one_answer_what_replay_answers(definition: EnergyDefinition, threshold: float) -> None:
    stages = [Session(lookup(table).SerializeToString(), "stage") for table in tables(3)]
    found = staged(stages, FakeRuntime.images(range(SAMPLES)), threshold, definition)
    assert same(replay(tables(3), threshold, definition), found)


def test_the_reference_implementation_of_onnx_gives_the_same_within_a_hundred_thousandth() -> None:
    from onnx.reference import ReferenceEvaluator

    images, threshold = random_inputs(12), 0.7
    model = fuse([load(each, "stage") for each in real(3)], "summed")
    expected = Whole(model.SerializeToString()).run(images, threshold)
    feeds = {"images": images, "threshold": np.array([[threshold]])}
    found: list[Any] = list(ReferenceEvaluator(model).run(None, feeds))
    logits, labels, stages, energies = found
    assert stages.tolist() == expected.stages.tolist()
    assert labels.tolist() == expected.classes.tolist()
    assert np.allclose(logits, expected.logits, rtol=0, atol=1e-5)
    assert np.allclose(energies, expected.energies, rtol=0, atol=1e-5)
    assert set(stages.tolist()) == {0, 1, 2}


def test_each_branch_holds_its_own_stages_weights_and_the_outer_graph_none_of_them() -> None:
    graph = fuse([load(model, "stage") for model in real(3)], "summed").graph
    outer = {weight.name for weight in graph.initializer}
    ifs = [helper.get_node_attr_value(node, "then_branch") for node in graph.node if node.op_type == "If"]
    weights = [{weight.name for weight in branch.initializer} for branch in ifs]
    assert {f"stage0/{name}" for name in "wbvc"} <= outer
    assert [{f"stage{stage}/{name}" for name in "wbvc"} <= found for stage, found in enumerate(weights, 1)] == [
        True
    ] * 2
    assert not any(name.startswith(("stage1/", "stage2/")) for name in outer)


def test_onnxruntime_fuses_inside_a_branch_what_it_fuses_outside(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = fuse([load(each, "stage") for each in real(2)], "summed").SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    branch = next(helper.get_node_attr_value(node, "then_branch") for node in graph.node if node.op_type == "If")
    assert [[node.op_type for node in each.node].count("FusedConv") for each in (graph, branch)] == [1, 1]


def test_the_file_says_what_it_was_told_to() -> None:
    model = fuse([lookup(tables(1)[0])], "summed", notes={"labels": '["a"]', "threshold": "0.5"})
    meta = opened(model.SerializeToString(), "fused").get_modelmeta()
    assert meta.custom_metadata_map == {"labels": '["a"]', "threshold": "0.5"}
    assert meta.producer_name == "rescade"


def test_stages_of_several_opsets_become_one_graph_of_the_highest() -> None:
    stages = [load(onnx_model(0), "stage"), load(onnx_model(1), "stage")]
    assert [entry.version for entry in stages[0].opset_import] == [17]
    assert [(entry.domain, entry.version) for entry in fuse(stages, "summed").opset_import] == [("", 18)]
    newer = onnx.version_converter.convert_version(stages[1], 20)
    assert [entry.version for entry in fuse([stages[0], newer], "summed").opset_import] == [20]


def quantised(opset: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["scores", "scale", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["logits"]),
    ]
    model = load(classifier(*nodes, scale=np.float32(0.01), zero=np.uint8(128)), "stage")
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize(("opset", "expected"), [(17, 19), (18, 19), (21, 21)])
def test_a_graph_with_a_quantised_stage_is_of_an_opset_that_the_reference_runs(opset: int, expected: int) -> None:
    from onnx.reference import ReferenceEvaluator

    model = fuse([quantised(opset)], "summed")
    assert [entry.version for entry in model.opset_import] == [expected]
    assert model.ir_version >= helper.find_min_ir_version_for(model.opset_import)
    images = random_inputs(5)
    found: list[Any] = list(ReferenceEvaluator(model).run(None, {"images": images, "threshold": np.array([[0.5]])}))
    expected_logits = Session(quantised(opset).SerializeToString(), "stage").run(images)
    assert np.array_equal(found[0], expected_logits)


def test_a_network_written_with_functions_can_be_part_of_it() -> None:
    ramp = helper.make_function("local", "Ramp", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], OPSETS[:1])
    model = load(classifier(helper.make_node("Ramp", ["scores"], ["logits"], domain="local")), "stage")
    model.functions.append(ramp)
    model.opset_import.append(OPSETS[1])
    images = random_inputs(5)
    expected = Session(model.SerializeToString(), "stage").run(images)
    found = Whole(fuse([model], "summed").SerializeToString()).run(images, 0.5)
    assert np.array_equal(found.logits, expected)


def test_a_file_that_lists_its_weights_among_its_inputs_can_be_part_of_it() -> None:
    model = load(onnx_model(), "stage")
    for weight in reversed(model.graph.initializer):
        model.graph.input.insert(0, helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    images = random_inputs(5)
    found = Whole(fuse([model], "summed").SerializeToString()).run(images, 0.5)
    assert np.array_equal(found.logits, Session(onnx_model(), "stage").run(images))


OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def outside() -> bytes:
    return onnx_model(outside="v")


@pytest.mark.parametrize(
    ("data", "message"), [(b"hello", "is not an ONNX file"), (outside(), "keeps weights outside the file")]
)
def test_a_file_that_is_not_whole_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        load(data, "stages[1].file")
    assert caught.value.field == "stages[1].file"


@pytest.mark.parametrize(
    "data",
    [
        onnx_model(size=9),
        onnx_model(classes=5),
        onnx_model(batch=7),
        classifier(inputs=["image", "mask"]),
        classifier(helper.make_node("Cast", ["scores"], ["logits"], to=TensorProto.DOUBLE), kind=TensorProto.DOUBLE),
        classifier(images=("N", 1, 24, 8)),
        classifier(images=("N", 192)),
    ],
    ids=[
        "another size",
        "other classes",
        "a fixed batch",
        "two inputs",
        "double precision",
        "one channel",
        "no images",
    ],
)
def test_a_stage_that_does_not_fit_the_first_is_named(data: bytes) -> None:
    with pytest.raises(BundleError, match="maps") as caught:
        fuse([load(onnx_model(), "stage"), load(data, "stage")], "summed")
    assert caught.value.field == "stages[1].file"


def test_a_first_stage_that_is_no_classifier_of_images_is_named() -> None:
    with pytest.raises(BundleError, match="a stage maps one") as caught:
        fuse([load(classifier(inputs=["image", "mask"]), "stage")], "summed")
    assert caught.value.field == "stages[0].file"


def test_a_graph_that_cannot_be_converted_is_named() -> None:
    model = load(classifier(), "stage")
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BundleError, match="cannot be made part of a graph") as caught:
        fuse([model], "summed")
    assert caught.value.field == "stages[0].file"
