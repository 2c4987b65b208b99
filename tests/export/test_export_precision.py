"""A graph in float16 and in int8: what changes inside, what does not outside, and what it may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cascade.files import Quantiser
from export.count import count
from export.precision import optimised, to_fp16, to_int8
from export.session import Array, Session
from export.to_onnx import to_onnx
from tests.builders import onnx_model, random_inputs, tiny_bundle
from tests.training.networks import frozen

pytestmark = pytest.mark.train

RULE = tiny_bundle().manifest.preprocess
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "8 bits": {"weight_bits": 8},
    "entropy": {"method": "entropy"},
    "percentile": {"method": "percentile", "percentile": 99.9},
    "nothing in float": {"in_float": []},
    "stem in float": {"in_float": ["stem", "classifier"]},
    "additions in float": {"in_float": ["classifier", "additions"]},
}


@pytest.fixture(scope="module")
def exported() -> bytes:
    return to_onnx(frozen("resnet8_0.25_a", 0), 8)


@pytest.fixture(scope="module")
def quantised(exported: bytes) -> bytes:
    return to_int8(exported, random_inputs(64), Quantiser(images=64), RULE)


def logits_of(model: bytes, images: Array) -> Array:
    return Session(model, "stage").run(images)


def readers(model: bytes, kind: str) -> list[bool]:
    """Of each node of a kind, whether it reads what was quantised."""
    graph = onnx.load_model_from_string(model).graph
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return [node.input[0] in made for node in graph.node if node.op_type == kind]


def distance(model: bytes, other: bytes) -> float:
    """Root mean square of the difference of logits, as a share of their own spread."""
    images = random_inputs(64, seed=1)
    ours, theirs = logits_of(model, images), logits_of(other, images)
    return float(np.sqrt(np.square(ours - theirs).mean()) / theirs.std())


def test_an_optimised_graph_gives_the_same_bits(exported: bytes) -> None:
    images = random_inputs(9)
    assert np.array_equal(logits_of(optimised(exported), images), logits_of(exported, images))
    assert count(optimised(exported)) == count(exported)


def test_half_precision_takes_and_gives_float32(exported: bytes) -> None:
    half = to_fp16(exported)
    graph = onnx.load_model_from_string(half).graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}
    assert (Session(half, "stage").input.type, Session(half, "stage").output.type) == ("tensor(float)",) * 2
    assert 0 < distance(half, exported) < 0.01


def test_half_precision_costs_what_the_network_costs(exported: bytes) -> None:
    assert count(to_fp16(exported)) == count(exported)


@pytest.mark.parametrize("name", SETTINGS)
def test_int8_says_nearly_what_float_says(exported: bytes, name: str) -> None:
    model = to_int8(exported, random_inputs(64), Quantiser.model_validate(SETTINGS[name]), RULE)
    assert 0 < distance(model, exported) < 0.2


def test_weights_are_signed_bytes_with_a_scale_a_channel(quantised: bytes) -> None:
    graph = onnx.load_model_from_string(quantised).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    scales = [tensors[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    kernels = [tensor for tensor in tensors.values() if len(tensor.dims) == 4 and tensor.data_type == TensorProto.INT8]
    assert len(kernels) == 9  # seven convolutions, and two that pick channels
    assert any(len(scale.dims) == 1 for scale in scales)


def test_seven_bits_leave_room_for_a_pair_of_products(exported: bytes) -> None:
    for bits, largest in ((7, 64), (8, 127)):
        model = to_int8(exported, random_inputs(64), Quantiser(weight_bits=bits), RULE)
        graph = onnx.load_model_from_string(model).graph
        kernels = [
            np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
        ]
        assert max(kernels) in (largest, largest - 1)


def test_what_gives_the_logits_stays_in_float(quantised: bytes) -> None:
    assert readers(quantised, "Conv") == [True] * 9
    assert readers(quantised, "Gemm") == [False]


def test_the_stem_can_stay_in_float(exported: bytes) -> None:
    model = to_int8(exported, random_inputs(64), Quantiser(in_float=("stem", "classifier")), RULE)
    assert readers(model, "Conv") == [False] + [True] * 8


def test_everything_can_be_quantised(exported: bytes) -> None:
    model = to_int8(exported, random_inputs(64), Quantiser(in_float=()), RULE)
    assert all(readers(model, "Conv"))
    assert all(readers(model, "Gemm"))


def test_additions_can_stay_in_float(exported: bytes, quantised: bytes) -> None:
    nodes = onnx.load_model_from_string(
        to_int8(exported, random_inputs(64), Quantiser(in_float=("classifier", "additions")), RULE)
    ).graph.node
    assert len(nodes) != len(onnx.load_model_from_string(quantised).graph.node)


def test_no_image_depends_on_its_batch_to_the_last_bit(quantised: bytes) -> None:
    images, session = random_inputs(9, seed=2), Session(quantised, "stage")
    alone = session.in_batches(images, 1)
    assert all(np.array_equal(session.in_batches(images, size), alone) for size in range(2, 10))


def test_int8_needs_no_operators_but_the_standards(quantised: bytes) -> None:
    model = onnx.load_model_from_string(quantised)
    assert {node.domain for node in model.graph.node} == {""}


def test_the_same_images_give_the_same_file(exported: bytes, quantised: bytes) -> None:
    assert to_int8(exported, random_inputs(64), Quantiser(images=64), RULE) == quantised


def test_a_graph_without_names_can_be_quantised_too() -> None:
    model = to_int8(onnx_model(), random_inputs(32), Quantiser(in_float=("classifier",)), RULE)
    assert distance(model, onnx_model()) < 0.2
    assert readers(model, "Conv") == [True]


def test_making_a_graph_says_nothing(exported: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    to_int8(exported, random_inputs(64), Quantiser(method="entropy"), RULE)
    to_fp16(exported)
    assert capfd.readouterr() == ("", "")
