"""What a request asks the cascade, in each of the forms its images may have."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from cascade.errors import BadShape, RequestError, TooLarge
from server.oip.model import Question, input_of, outputs_of, read_outputs, read_question
from server.oip.request import InferRequest, RequestedOutput, read_request
from server.options import Options
from tests.builders import encoded, random_inputs, random_photo, tiny_manifest
from tests.server.oip.makers import MANIFEST, SIZE, binary_entry, elements, image_entry, request_body

PHOTO = encoded(random_photo())
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE), np.uint8)


def read(body: bytes, tail: bytes | None = None) -> InferRequest:
    header = None if tail is None else str(len(body))
    return read_request(body + (tail or b""), header, input_of(MANIFEST))


def ask(body: bytes, tail: bytes | None = None) -> Question:
    return read_question(read(body, tail), MANIFEST, 4)


def test_the_declared_tensors_are_those_of_the_manifest() -> None:
    assert input_of(MANIFEST).shape == (-1, 3, SIZE, SIZE)
    shapes = {spec.name: spec.shape for spec in outputs_of(MANIFEST)}
    assert shapes["logits"] == shapes["probabilities"] == (-1, len(MANIFEST.labels))
    assert shapes["label"] == shapes["exit_stage"] == shapes["energy"] == (-1,)


@pytest.mark.parametrize("binary", [False, True])
def test_preprocessed_images_are_taken_as_they_are(binary: bool) -> None:
    images = random_inputs(2)
    if binary:
        found = ask(request_body(binary_entry(images.nbytes, images.shape)), images.tobytes())
    else:
        found = ask(request_body(image_entry(images.tolist(), images.shape)))
    assert found.inputs is not None
    assert found.inputs.dtype == np.float32
    assert (found.count, found.pixels, found.images) == (2, None, ())
    np.testing.assert_array_equal(found.inputs, images)


@pytest.mark.parametrize("channels_last", [False, True])
def test_raw_pixels_may_have_their_channels_first_or_last(channels_last: bool) -> None:
    sent = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)) if channels_last else PIXELS
    found = ask(request_body(binary_entry(sent.nbytes, sent.shape, "UINT8")), sent.tobytes())
    assert found.pixels is not None
    assert found.pixels.flags.c_contiguous
    assert (found.count, found.inputs, found.images) == (2, None, ())
    np.testing.assert_array_equal(found.pixels, PIXELS)


def test_where_both_readings_are_possible_channels_come_first() -> None:
    manifest = tiny_manifest([b"0"], size=3)
    sent = np.arange(27, dtype=np.uint8).reshape(1, 3, 3, 3)
    request = read(request_body(image_entry(sent.tolist(), sent.shape, "UINT8")))
    found = read_question(request, manifest, 4).pixels
    np.testing.assert_array_equal(found, sent)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_encoded_images_come_as_bytes(shape: list[int]) -> None:
    tail = elements(PHOTO, b"\xff")
    found = ask(request_body(binary_entry(len(tail), shape, "BYTES")), tail)
    assert (found.images, found.count, found.inputs, found.pixels) == ([PHOTO, b"\xff"], 2, None, None)


@pytest.mark.parametrize("nested", [False, True])
def test_encoded_images_come_in_base64_where_they_are_json(nested: bool) -> None:
    text = base64.b64encode(PHOTO).decode()
    data = [[text], [""]] if nested else [text, ""]
    assert ask(request_body(image_entry(data, [2, 1], "BYTES"))).images == [PHOTO, b""]


def test_an_empty_string_is_an_element_too() -> None:
    tail = elements(b"", b"")
    assert ask(request_body(binary_entry(len(tail), [2], "BYTES")), tail).images == [b"", b""]


EMPTY = {
    "FP32": [0, 3, SIZE, SIZE],
    "UINT8": [0, SIZE, SIZE, 3],
    "BYTES": [0, 1],
}


@pytest.mark.parametrize("datatype", EMPTY)
@pytest.mark.parametrize("binary", [False, True])
def test_an_empty_batch_is_a_question_of_no_images(datatype: str, binary: bool) -> None:
    shape = EMPTY[datatype]
    if binary:
        assert ask(request_body(binary_entry(0, shape, datatype)), b"").count == 0
    else:
        assert ask(request_body(image_entry([], shape, datatype))).count == 0


def test_parameters_steer_the_cascade() -> None:
    found = ask(request_body(parameters={"threshold": 0.25, "max_stage": 1, "timeout": 1500, "priority": 7}))
    assert (found.options, found.timeout_s) == (Options(threshold=0.25, max_stage=1, priority=7), 0.0015)


@pytest.mark.parametrize("parameters", [{}, {"timeout": 0, "priority": 0}])
def test_without_parameters_the_server_decides(parameters: dict[str, int]) -> None:
    found = ask(request_body(parameters=parameters))
    assert (found.options, found.timeout_s) == (Options(), None)


def test_an_integer_is_a_threshold_too() -> None:
    assert ask(request_body(parameters={"threshold": 1})).options.threshold == 1.0


# name: (input, parameters, error, words of the message)
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[RequestError], str]] = {
    "another name": ({**image_entry(), "name": "x"}, {}, RequestError, "the only input is 'image'"),
    "another datatype": (
        image_entry(datatype="FP64"),
        {},
        BadShape,
        "FP32 \\[N, 3, 8, 8\\]; UINT8 .* or .*; BYTES \\[N\\]",
    ),
    "no batch": (image_entry(shape=[3, 8, 8]), {}, BadShape, "\\[3, 8, 8\\]"),
    "no shape": (image_entry([0], []), {}, BadShape, "\\[\\]"),
    "one text": (image_entry([""], [], "BYTES"), {}, BadShape, "\\[\\]"),
    "channels last": (image_entry(shape=[1, 8, 8, 3]), {}, BadShape, "\\[1, 8, 8, 3\\]"),
    "another size": (image_entry(shape=[1, 8, 9, 3], datatype="UINT8"), {}, BadShape, "\\[1, 8, 9, 3\\]"),
    "a table of texts": (image_entry([""] * 2, [1, 2], "BYTES"), {}, BadShape, "\\[1, 2\\]"),
    "too many": (image_entry([], [5, 3, 8, 8]), {}, TooLarge, "the limit is 4"),
    "too little data": (image_entry([1]), {}, BadShape, "1 elements"),
    "no base64": (image_entry(["@@@@"], [1], "BYTES"), {}, RequestError, "element 0 of input 'image' is not base64"),
    "half of it": (image_entry(["YQ=", "a"], [2], "BYTES"), {}, RequestError, "element 0"),
    "text of no ASCII": (image_entry(["é"], [1], "BYTES"), {}, RequestError, "element 0"),
    "a threshold of text": (image_entry(), {"threshold": "0.5"}, RequestError, "threshold must be a number"),
    "a threshold of true": (image_entry(), {"threshold": True}, RequestError, "threshold must be a number"),
    "half a stage": (image_entry(), {"max_stage": 0.5}, RequestError, "max_stage must be a whole number"),
    "a negative stage": (image_entry(), {"max_stage": -1}, RequestError, "max_stage must be a whole number"),
    "a negative timeout": (image_entry(), {"timeout": -1}, RequestError, "'timeout' of the request"),
    "a timeout of seconds": (image_entry(), {"timeout": 0.5}, RequestError, "'timeout' of the request"),
    "a high priority": (image_entry(), {"priority": "high"}, RequestError, "priority must be a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_question_that_cannot_be_answered_is_refused(case: str) -> None:
    tensor, parameters, error, words = BAD[case]
    with pytest.raises(error, match=words):
        ask(request_body(tensor, parameters=parameters))


def test_a_second_input_is_refused() -> None:
    with pytest.raises(RequestError, match="no input 'mask'"):
        ask(request_body(image_entry(), {**image_entry(), "name": "mask"}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    images = random_inputs(1)
    images[0, 2, 1, 0] = value
    with pytest.raises(BadShape, match="must be finite"):
        ask(request_body(binary_entry(images.nbytes)), images.tobytes())


@pytest.mark.parametrize("binary", [False, True])
def test_all_outputs_are_given_where_none_is_named(binary: bool) -> None:
    request = read(request_body(parameters={"binary_data_output": binary}))
    names = ["logits", "probabilities", "label", "exit_stage", "energy"]
    assert list(read_outputs(request, MANIFEST)) == [RequestedOutput(name, binary) for name in names]


def test_outputs_are_given_in_the_order_asked_for() -> None:
    request = read(request_body(outputs=[{"name": "energy"}, {"name": "label"}]))
    assert [output.name for output in read_outputs(request, MANIFEST)] == ["energy", "label"]


@pytest.mark.parametrize("name", ["image", "", "Logits"])
def test_an_output_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="the outputs are logits"):
        read_outputs(read(request_body(outputs=[{"name": name}])), MANIFEST)


@pytest.mark.parametrize("name", ["label", "exit_stage", "energy"])
def test_only_what_ranks_classes_can_be_classified(name: str) -> None:
    request = read(request_body(outputs=[{"name": name, "parameters": {"classification": 1}}]))
    with pytest.raises(RequestError, match="ask for classification of logits, probabilities"):
        read_outputs(request, MANIFEST)
