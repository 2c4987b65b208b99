"""A request is taken apart as its header says, and refused by name where it is not one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import RequestError
from server.oip.request import InferRequest, InputTensor, RequestedOutput, TensorSpec, read_request
from tests.server.oip.makers import binary_entry, image_entry, request_body

DECLARED = TensorSpec("image", "FP32", (-1, 3, 2, 2))
VECTOR = (
    b'{"id":"r1","inputs":[{"name":"image","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
    b'"outputs":[{"name":"logits","parameters":{"binary_data":true}},'
    b'{"name":"exit_stage","parameters":{"binary_data":false}}]}'
)
TAIL = bytes.fromhex("0000803f000000c0")
ONE = image_entry([1.5], [1])


def read(body: bytes, header: str | int | None = None) -> InferRequest:
    return read_request(body, None if header is None else str(header), DECLARED)


def entry(**changes: Any) -> bytes:
    """A request whose only input differs from a good one; None takes a member away."""
    return request_body({name: value for name, value in {**ONE, **changes}.items() if value is not None})


def wanted(**changes: Any) -> bytes:
    return request_body(ONE, outputs=[{"name": "logits", **changes}])


def test_the_request_of_the_specification_is_read_as_it_says() -> None:
    assert (len(VECTOR), len(VECTOR + TAIL)) == (228, 236)
    found = read(VECTOR + TAIL, 228)
    assert (found.id, found.outputs) == ("r1", [RequestedOutput("logits", True), RequestedOutput("exit_stage", False)])
    tensor = found.inputs[0]
    assert (tensor.name, tensor.datatype, tensor.shape, tensor.binary) == ("image", "FP32", (1, 2), True)
    np.testing.assert_array_equal(tensor.array(), np.array([[1.0, -2.0]], np.float32))


def test_without_the_header_the_body_is_json_alone() -> None:
    found = read(request_body(ONE))
    assert found == InferRequest([InputTensor("image", "FP32", (1,), [1.5])], [], None, {}, False)
    assert found.inputs[0].array().tolist() == [1.5]


def test_a_header_of_the_full_length_says_the_same_as_none() -> None:
    body = request_body(ONE)
    assert read(body, len(body)) == read(body, f" {len(body)} ") == read(body)


def test_what_is_null_is_as_good_as_absent() -> None:
    members = dict.fromkeys(["id", "parameters", "outputs"])
    assert read(request_body({**ONE, "parameters": None}, **members)) == read(request_body(ONE))


def test_members_that_nobody_knows_are_passed_over() -> None:
    assert read(request_body({**ONE, "note": 1}, model_name="x")) == read(request_body(ONE))


def test_an_id_is_kept_as_it_is() -> None:
    assert [read(request_body(ONE, id=id_)).id for id_ in ("", "é\n", "x" * 9999)] == ["", "é\n", "x" * 9999]


def test_binary_inputs_follow_each_other_in_the_order_of_the_list() -> None:
    second = {"name": "b", "datatype": "UINT8", "shape": [2], "data": [1, 2]}
    third = {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    head = request_body(binary_entry(4, [1]), second, third)
    found = read(head + np.float32(2.5).tobytes() + b"\1\0\0\0x", len(head))
    assert [tensor.array().tolist() for tensor in found.inputs] == [[2.5], [1, 2], [b"x"]]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_however_the_bytes_are_divided_each_input_gets_its_own(parts: list[bytes]) -> None:
    entries = [{**binary_entry(len(part), [len(part)], "UINT8"), "name": str(n)} for n, part in enumerate(parts)]
    head = request_body(*entries)
    found = read(head + b"".join(parts), len(head))
    assert [tensor.array().tobytes() for tensor in found.inputs] == parts


def test_an_empty_tensor_has_no_bytes() -> None:
    head = request_body(binary_entry(0, [0, 3]))
    assert read(head, len(head)).inputs[0].array().shape == (0, 3)


def test_a_raw_request_is_one_input_and_asks_for_all_in_binary() -> None:
    body = np.arange(12, dtype="<f4").tobytes()
    found = read(body, 0)
    assert (found.binary, found.outputs, found.id) == (True, (), None)
    assert found.inputs[0].array().shape == (1, 3, 2, 2)
    assert found.inputs[0].array().tobytes() == body


@pytest.mark.parametrize("size", [0, 47, 49, 96])
def test_a_raw_request_of_another_size_is_told_the_right_one(size: int) -> None:
    with pytest.raises(RequestError, match="has 48 bytes"):
        read(b"\0" * size, 0)


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "nothing said": ({}, {}, False),
    "binary by default": ({"binary_data_output": True}, {}, True),
    "binary for this one": ({}, {"binary_data": True}, True),
    "json for this one": ({"binary_data_output": True}, {"binary_data": False}, False),
}


@pytest.mark.parametrize("case", FORMS)
def test_an_output_has_its_own_form_or_else_the_default(case: str) -> None:
    default, own, binary = FORMS[case]
    found = read(request_body(ONE, parameters=default, outputs=[{"name": "logits", "parameters": own}]))
    assert found.outputs == [RequestedOutput("logits", binary)]
    assert found.binary is default.get("binary_data_output", False)


def test_classes_may_be_asked_for() -> None:
    assert read(wanted(parameters={"classification": 2})).outputs == [RequestedOutput("logits", False, 2)]


def test_parameters_are_kept_but_for_those_that_say_nothing_new() -> None:
    hints = {"content_type": "np"}
    body = request_body({**ONE, "parameters": hints}, parameters={"threshold": 0.5, "max_stage": 1, **hints})
    assert read(body).parameters == {"threshold": 0.5, "max_stage": 1}


BIT = request_body(binary_entry(4, [1]))

# name: (body, header, words of the message)
BAD: dict[str, tuple[bytes, str | int | None, str]] = {
    "an empty body": (b"", None, "JSON of the body"),
    "no JSON": (b"{", None, "JSON of the body"),
    "no text": (b"\xff\xfe", None, "JSON of the body"),
    "NaN": (b'{"inputs": [NaN]}', None, "JSON of the body"),
    "deep": (b"[" * 99_999, None, "JSON of the body"),
    "a list": (b"[]", None, "must be an object"),
    "bytes after the JSON": (request_body(ONE) + b"\0", None, "JSON of the body"),
    "a header of words": (BIT, "all", "is 'all'"),
    "an empty header": (BIT, "", "is ''"),
    "a negative header": (BIT, -1, "is '-1'"),
    "a fraction": (BIT, "1.0", "is '1.0'"),
    "a sign": (BIT, "+10", "is '\\+10'"),
    "other digits": (BIT, "\u0661", "Inference-Header-Content-Length is"),
    "a header too large": (BIT, len(BIT) + 1, f"{len(BIT)} bytes"),
    "a header beyond all": (BIT, "9" * 5000, "is '9999"),
    "a header too small": (BIT, 5, "JSON of the body"),
    "no bytes": (BIT, len(BIT), "announces 4 bytes, but the body has 0"),
    "bytes too few": (BIT + b"\0" * 3, len(BIT), "announces 4 bytes, but the body has 3"),
    "bytes too many": (BIT + b"\0" * 6, len(BIT), "2 bytes are left"),
    "bytes for nobody": (request_body(ONE) + b"\0", len(request_body(ONE)), "1 bytes are left"),
    "binary without a header": (BIT, None, "Inference-Header-Content-Length is missing"),
    "nothing, binary, without a header": (request_body(binary_entry(0, [0])), None, "is missing"),
    "a negative size": (request_body(binary_entry(-1)), None, "binary_data_size"),
    "a size that is true": (entry(data=None, parameters={"binary_data_size": True}), None, "binary_data_size"),
    "a size of text": (entry(data=None, parameters={"binary_data_size": "4"}), None, "binary_data_size"),
    "data and bytes": (entry(parameters={"binary_data_size": 4}), None, "and not both"),
    "neither": (entry(data=None), None, "and not both"),
    "shared memory": (entry(data=None, parameters={"shared_memory_region": "x"}), None, "shared memory is not offered"),
    "data of no list": (entry(data="1.5"), None, "data in an array"),
    "no inputs": (b"{}", None, "no inputs"),
    "inputs of nothing": (b'{"inputs": []}', None, "no inputs"),
    "inputs of no list": (b'{"inputs": {"name": "x"}}', None, "array of objects"),
    "inputs of numbers": (b'{"inputs": [1]}', None, "array of objects"),
    "an input twice": (request_body(ONE, ONE), None, "'image' is in 'inputs' twice"),
    "no name": (entry(name=None), None, "needs a name"),
    "a name of no text": (entry(name=1), None, "needs a name"),
    "no shape": (entry(shape=None), None, "'image' needs a shape"),
    "no datatype": (entry(datatype=None), None, "'image' needs a datatype"),
    "outputs of no list": (request_body(ONE, outputs={"name": "x"}), None, "array of objects"),
    "outputs of false": (request_body(ONE, outputs=False), None, "array of objects"),
    "an output twice": (request_body(ONE, outputs=[{"name": "x"}] * 2), None, "'x' is in 'outputs' twice"),
    "an output of no name": (wanted(name=None), None, "needs a name"),
    "a form of text": (wanted(parameters={"binary_data": "true"}), None, "'binary_data' of output 'logits'"),
    "no classes": (wanted(parameters={"classification": 0}), None, "at least 1"),
    "half a class": (wanted(parameters={"classification": 1.5}), None, "at least 1"),
    "parameters of a list": (wanted(parameters=[]), None, "must be an object"),
    "an unknown parameter": (wanted(parameters={"binary": True}), None, "'binary' of output 'logits'.*binary_data"),
    "an id of no text": (request_body(ONE, id=1), None, "id must be a string"),
    "a slip of the pen": (request_body(ONE, parameters={"treshold": 1}), None, "'treshold'.*threshold"),
    "a parameter of a list": (request_body(ONE, parameters={"threshold": [1]}), None, "'threshold'.*string, a number"),
    "a parameter of nothing": (request_body(ONE, parameters={"timeout": None}), None, "'timeout'.*string, a number"),
    "a default of one": (request_body(ONE, parameters={"binary_data_output": 1}), None, "true or false"),
    "a sequence": (request_body(ONE, parameters={"sequence_id": 1}), None, "sequences are not offered"),
    "a start": (request_body(ONE, parameters={"sequence_start": True}), None, "sequences are not offered"),
    "a reserved name": (request_body(ONE, parameters={"triton_x": 1}), None, "reserved"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_request_is_refused_by_name(case: str) -> None:
    body, header, words = BAD[case]
    with pytest.raises(RequestError, match=words) as caught:
        read(body, header)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=4), st.integers(-2, 300).map(str)))
def test_nothing_that_arrives_makes_the_reader_fail_otherwise(body: bytes, header: str | None) -> None:
    with suppress(RequestError):
        read_request(body, header, DECLARED)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)
MEMBERS = ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data"]


@given(st.dictionaries(st.sampled_from(MEMBERS), JSON), st.dictionaries(st.sampled_from(MEMBERS), JSON))
def test_no_json_makes_the_reader_fail_otherwise(document: dict[str, Any], tensor: dict[str, Any]) -> None:
    with suppress(RequestError):
        read(orjson.dumps({**document, "inputs": [{**ONE, **tensor}]})).inputs[0].array()
