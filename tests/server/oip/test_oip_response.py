"""An answer says what was asked for, in the order and the form that was asked for."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import NotFinite
from cascade.exits import softmax
from server.oip.datatypes import from_binary
from server.oip.model import outputs_of
from server.oip.request import HEADER, RequestedOutput
from server.oip.response import (
    COMPRESS_FROM_BYTES,
    OutputTensor,
    Reply,
    classify,
    compressed,
    response_parameters,
    tensors,
    write_response,
)
from tests.server.oip.makers import MANIFEST, FakeOutcome, outcome

OUTCOMES = [outcome(0.5, 3, -1, 0, stage=1, energy=0.1), outcome(0, 1, 2, 2, energy=0.75)]
NAMES = [spec.name for spec in outputs_of(MANIFEST)]


def answer(
    *wanted: tuple[str, bool], outcomes: list[FakeOutcome] = OUTCOMES, classification: int | None = None
) -> Reply:
    outputs = [RequestedOutput(name, binary, classification) for name, binary in wanted]
    return write_response("cascade", "1", None, {}, tensors(outcomes, MANIFEST, outputs))


def document(reply: Reply) -> dict[str, Any]:
    """The JSON of a reply."""
    found: dict[str, Any] = orjson.loads(reply.body[: int(reply.headers.get(HEADER, len(reply.body)))])
    return found


def test_the_response_of_the_specification_is_written_byte_for_byte() -> None:
    logits = OutputTensor("logits", "FP32", np.array([[0.5, -1.0, 2.0]], np.float32), binary=True)
    stage = OutputTensor("exit_stage", "INT32", np.array([0], np.int32), binary=False)
    reply = write_response("cascade", "1", "r1", {}, [logits, stage])
    head = (
        b'{"model_name":"cascade","model_version":"1","id":"r1","outputs":['
        b'{"name":"logits","datatype":"FP32","shape":[1,3],"parameters":{"binary_data_size":12}},'
        b'{"name":"exit_stage","datatype":"INT32","shape":[1],"data":[0]}]}'
    )
    assert reply.body == head + bytes.fromhex("0000003f000080bf00000040")
    assert (len(head), len(reply.body)) == (217, 229)
    assert reply.headers == {"Content-Type": "application/octet-stream", HEADER: "217"}


def test_each_output_says_what_its_name_says() -> None:
    found = {entry["name"]: entry["data"] for entry in document(answer(*[(name, False) for name in NAMES]))["outputs"]}
    shares = softmax(np.stack([given.logits for given in OUTCOMES]))
    assert found["logits"] == [0.5, 3, -1, 0, 0, 1, 2, 2]
    np.testing.assert_array_equal(np.array(found["probabilities"], np.float32), shares.ravel())
    assert found["label"] == ["class 1", "class 2"]
    assert (found["exit_stage"], found["energy"]) == ([1, 0], [0.1, 0.75])


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("binary", [False, True])
def test_outputs_have_the_declared_datatypes_and_shapes(count: int, binary: bool) -> None:
    reply = answer(*[(name, binary) for name in NAMES], outcomes=OUTCOMES[:count])
    for entry, spec in zip(document(reply)["outputs"], outputs_of(MANIFEST), strict=True):
        assert (entry["name"], entry["datatype"]) == (spec.name, spec.datatype)
        assert entry["shape"] == [count, *spec.shape[1:]]


def test_binary_outputs_lie_behind_the_json_in_its_order() -> None:
    reply = answer(("energy", True), ("exit_stage", False), ("label", True))
    entries = document(reply)["outputs"]
    tail = reply.body[int(reply.headers[HEADER]) :]
    assert [entry["name"] for entry in entries] == ["energy", "exit_stage", "label"]
    assert [entry.get("parameters") for entry in entries] == [{"binary_data_size": 16}, None, {"binary_data_size": 22}]
    assert from_binary("FP64", (2,), memoryview(tail)[:16], "it").tolist() == [0.1, 0.75]
    assert from_binary("BYTES", (2,), memoryview(tail)[16:], "it").tolist() == [b"class 1", b"class 2"]


def test_an_answer_without_bytes_is_plain_json() -> None:
    for reply in (answer(("label", False)), answer(("logits", True), ("label", True), outcomes=[])):
        assert reply.headers == {"Content-Type": "application/json"}
    assert document(reply)["outputs"][0]["parameters"] == {"binary_data_size": 0}


def test_an_output_carries_parameters_only_for_its_size() -> None:
    entries = document(answer(*[(name, False) for name in NAMES]))["outputs"]
    assert all(set(entry) == {"name", "datatype", "shape", "data"} for entry in entries)


def test_data_is_flat_whatever_the_shape() -> None:
    entry = document(answer(("logits", False)))["outputs"][0]
    assert entry["shape"] == [2, 4]
    assert len(entry["data"]) == 8


@pytest.mark.parametrize("binary", [False, True])
def test_classes_are_named_with_value_and_index_best_first(binary: bool) -> None:
    reply = answer(("logits", binary), classification=2)
    entry = document(reply)["outputs"][0]
    wanted = ["3.0:1:class 1", "0.5:0:class 0", "2.0:2:class 2", "2.0:3:class 3"]
    assert (entry["datatype"], entry["shape"]) == ("BYTES", [2, 2])
    if binary:
        tail = memoryview(reply.body)[int(reply.headers[HEADER]) :]
        assert from_binary("BYTES", (4,), tail, "it").tolist() == [text.encode() for text in wanted]
    else:
        assert entry["data"] == wanted


def test_a_class_is_written_as_in_the_specification() -> None:
    values = np.array([[-1, 0.25, 3.5]], np.float32)
    assert classify(values, ["ant", "bee", "cat"], 1).tolist() == [[b"3.5:2:cat"]]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6), st.integers(1, 9))
def test_classes_are_in_falling_order_and_none_is_named_twice(row: list[float], count: int) -> None:
    values = np.array([row], np.float32)
    found = [element.decode().split(":") for element in classify(values, ["x"] * len(row), count)[0]]
    named = [values[0, int(index)] for _, index, _ in found]
    assert len({index for _, index, _ in found}) == len(found) == min(count, len(row))
    assert named == sorted(named, reverse=True)
    assert [np.float32(value) for value, _, _ in found] == named


def test_an_empty_batch_has_no_classes_to_name() -> None:
    entry = document(answer(("probabilities", False), outcomes=[], classification=3))["outputs"][0]
    assert (entry["shape"], entry["data"]) == ([0, 3], [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_cannot_say_is_an_error_that_tells_the_way_out(value: float) -> None:
    outcomes = [outcome(value, 0, 0, 0, energy=math.nan)]
    for name in ("logits", "probabilities", "energy"):
        with pytest.raises(NotFinite, match=f"output '{name}' .*ask for binary data") as caught:
            answer((name, False), outcomes=outcomes)
        assert caught.value.status == 500
        assert answer((name, True), outcomes=outcomes).body


def test_the_id_is_echoed_if_there_was_one() -> None:
    assert "id" not in document(write_response("m", "1", None, {}, []))
    assert [document(write_response("m", "1", id_, {}, []))["id"] for id_ in ("", "é")] == ["", "é"]


def test_what_we_add_stands_in_the_parameters_of_the_response() -> None:
    late = [*OUTCOMES, outcome(0, truncated=True)]
    assert response_parameters(0.5, OUTCOMES) == {"threshold": 0.5}
    assert response_parameters(0.5, late) == {"threshold": 0.5, "truncated": True}
    assert response_parameters(None, []) == {}
    reply = write_response("m", "1", "r", response_parameters(0.5, late), [])
    assert list(document(reply)) == ["model_name", "model_version", "id", "parameters", "outputs"]


LARGE = Reply(b"x" * COMPRESS_FROM_BYTES, {HEADER: "5", "Content-Type": "application/octet-stream"})
UNDO: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize("encoding", UNDO)
def test_a_large_answer_is_compressed_and_still_counts_its_plain_json(encoding: str) -> None:
    reply = compressed(LARGE, f"br, {encoding}")
    assert reply.headers == {**LARGE.headers, "Content-Encoding": encoding}
    assert UNDO[encoding](reply.body) == LARGE.body


def test_an_answer_that_is_small_or_not_to_be_compressed_stays_plain() -> None:
    small = Reply(LARGE.body[1:], {})
    assert compressed(small, "gzip") is small
    assert compressed(LARGE, None) is compressed(LARGE, "br, zstd") is LARGE
