"""Messages to checked requests and outcomes to messages: every datatype, raw and typed, and every way to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `grpc`")
pytest.importorskip("google.protobuf", reason="needs the extra `grpc`")

from cascade.errors import BadShape, RequestError
from server.oip.infer import Asked
from server.oip.model import Question
from server.oip.request import RequestedOutput
from server.oip.response import response_parameters
from server.options import Options
from server.rpc.messages import REQUESTS, RESPONSES, Message, kind, parse
from server.rpc.tensors import PARAMETERS, read, read_request, write
from tests.builders import encoded, random_photo
from tests.server.grpc.makers import infer, raw
from tests.server.oip.fakes import LIMITS, FakeModel
from tests.server.oip.makers import MANIFEST, elements, outcome

ZEROS = np.zeros((1, 3, 8, 8), np.float32)
FIELDS: list[tuple[str, str, list[Any]]] = [
    ("BOOL", "bool_contents", [True, False]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 2**16 - 1]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("FP32", "fp32_contents", [0.5, -2.0]),
    ("FP64", "fp64_contents", [0.1, 1e300]),
    ("BYTES", "bytes_contents", [b"", b"\xff\x00"]),
]
NUMPY = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_, "BF16": np.uint16}


def typed(datatype: str, field: str, values: list[Any], *shape: int) -> Message:
    """A request for one tensor of typed elements."""
    message = REQUESTS["ModelInfer"](model_name="cascade")
    tensor = message.inputs.add(name="image", datatype=datatype, shape=shape or (len(values),))
    getattr(tensor.contents, field).extend(values)
    return message


def refused(message: Message, *words: str) -> None:
    """Reading a request fails with these words."""
    with pytest.raises(RequestError) as caught:
        read_request(message).inputs[0].array()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("datatype", "field", "values"), FIELDS, ids=[row[0] for row in FIELDS])
def test_every_typed_field_is_read(datatype: str, field: str, values: list[Any]) -> None:
    (tensor,) = read_request(typed(datatype, field, values, 2, 1)).inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("image", datatype, (2, 1))
    assert tensor.array().ravel().tolist() == values


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT16", "INT64", "FP16", "BF16", "FP32", "FP64"])
def test_every_raw_tensor_is_read(datatype: str) -> None:
    array = np.array([[0, 1]], NUMPY.get(datatype, datatype.lower()))
    (tensor,) = read_request(infer(array, datatype)).inputs
    assert tensor.array().tolist() == array.tolist()
    assert tensor.binary


def test_raw_bytes_elements_are_read() -> None:
    message = infer(np.frombuffer(elements(b"", b"\xff\x00"), np.uint8), "BYTES")
    message.inputs[0].shape[:] = [2]
    assert read_request(message).inputs[0].array().tolist() == [b"", b"\xff\x00"]


@pytest.mark.parametrize(
    ("datatype", "field", "value"), [("INT8", "int_contents", 128), ("UINT8", "uint_contents", 256)]
)
def test_a_number_outside_its_type_is_refused(datatype: str, field: str, value: int) -> None:
    refused(typed(datatype, field, [value]), datatype, "from")


def test_elements_in_the_field_of_another_datatype_are_refused() -> None:
    refused(typed("FP32", "fp64_contents", [1.0]), "belongs into fp32_contents", "fp64_contents")


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_a_datatype_without_a_typed_field_has_to_come_raw(datatype: str) -> None:
    refused(typed(datatype, "fp32_contents", [1.0]), datatype, "raw_input_contents")


@pytest.mark.parametrize(("field", "values"), [("fp32_contents", [1.0]), ("bytes_contents", [])])
def test_too_few_typed_elements_are_refused(field: str, values: list[Any]) -> None:
    refused(typed("FP32" if values else "BYTES", field, values, 2), f"{len(values)} elements", "holds 2")


def test_raw_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    message = infer(ZEROS)
    message.raw_input_contents[0] += b"0"
    refused(message, "769 bytes", "768")


@pytest.mark.parametrize("count", [0, 2])
def test_raw_contents_are_for_all_inputs_or_for_none(count: int) -> None:
    message = infer(ZEROS)
    message.raw_input_contents.extend([b""] * (count - 1) if count else [b""])
    refused(message, "raw_input_contents has 2 entries for 1 inputs")


def test_raw_and_typed_contents_of_one_input_are_refused() -> None:
    message = infer(ZEROS)
    message.inputs[0].contents.fp32_contents.append(1)
    refused(message, "contents", "send one of them")


def test_a_request_without_inputs_is_refused() -> None:
    refused(REQUESTS["ModelInfer"](model_name="cascade"), "no inputs")


def test_an_input_or_output_twice_is_refused() -> None:
    message = infer(ZEROS)
    message.outputs.add(name="logits")
    message.outputs.add(name="logits")
    refused(message, "'logits' is in 'outputs' twice")
    message = infer(ZEROS)
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(b"")
    refused(message, "'image' is in 'inputs' twice")


def test_a_shape_or_datatype_that_is_none_is_refused() -> None:
    message = infer(ZEROS)
    message.inputs[0].shape[0] = -1
    refused(message, "needs a shape")
    refused(infer(ZEROS, "FP31"), "needs a datatype")


def test_parameters_of_every_kind_are_read_and_checked() -> None:
    message = infer(ZEROS, id="r1")
    message.parameters["threshold"].double_param = 0.5
    message.parameters["max_stage"].int64_param = 1
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 2_000_000
    message.parameters["content_type"].string_param = "ignored"
    asked = read(message, MANIFEST, LIMITS)
    assert asked.id == "r1"
    assert asked.question.options == Options(threshold=0.5, max_stage=1, priority=2)
    assert asked.question.timeout_s == 2.0


def test_a_profile_is_a_string_and_thresholds_a_stage_are_one_too() -> None:
    message = infer(ZEROS)
    message.parameters["profile"].string_param = "fast"
    assert read(message, MANIFEST, LIMITS).question.options == Options(profile="fast")
    assert PARAMETERS[type(response_parameters((0.5, 0.75), ())["threshold"])] == "string_param"


@pytest.mark.parametrize("name", ["treshold", "sequence_id", "triton_x"])
def test_a_parameter_that_is_not_known_is_refused(name: str) -> None:
    message = infer(ZEROS)
    message.parameters[name].int64_param = 1
    refused(message, name)


def test_what_the_client_in_cpp_sends_with_every_request_is_passed_over() -> None:
    message = infer(ZEROS)
    message.parameters["triton_enable_empty_final_response"].bool_param = False
    assert read_request(message).parameters == {}


def test_a_parameter_without_a_value_is_refused() -> None:
    message = infer(ZEROS)
    message.parameters["threshold"].SetInParent()
    refused(message, "threshold", "must be a string, a number or a boolean")


def test_parameters_of_tensors_are_checked_too() -> None:
    message = infer(ZEROS)
    message.inputs[0].parameters["binary_data_size"].int64_param = ZEROS.nbytes
    assert len(read_request(message).inputs) == 1
    message.inputs[0].parameters["size"].int64_param = 1
    refused(message, "'size' of input 'image'")
    message = infer(ZEROS)
    message.outputs.add(name="logits").parameters["classification"].int64_param = 0
    refused(message, "classification", "at least 1")
    message.outputs[0].parameters["classification"].int64_param = 2
    message.outputs[0].parameters["binary_data"].bool_param = True
    assert read_request(message).outputs == [RequestedOutput("logits", True, 2)]


@pytest.mark.parametrize("is_raw", [True, False])
def test_encoded_images_come_as_they_are(is_raw: bool) -> None:
    photo = encoded(random_photo())
    message = typed("BYTES", "bytes_contents", [photo])
    if is_raw:
        message.inputs[0].ClearField("contents")
        message.raw_input_contents.append(elements(photo))
    assert read(message, MANIFEST, LIMITS).question.images == [photo]


def test_an_output_that_is_not_there_is_refused() -> None:
    message = infer(ZEROS)
    message.outputs.add(name="logit")
    with pytest.raises(RequestError, match="no output 'logit'"):
        read(message, MANIFEST, LIMITS)


def test_a_wrong_shape_is_refused_with_those_that_are_right() -> None:
    with pytest.raises(BadShape, match="FP32 \\[N, 3, 8, 8\\]"):
        read(infer(ZEROS[:, :2]), MANIFEST, LIMITS)


def test_every_output_is_raw_and_in_the_order_asked_for() -> None:
    wanted = [RequestedOutput(name, True) for name in ("exit_stage", "energy", "logits", "label")]
    body = write(Asked("r1", Question(Options()), wanted), FakeModel(), 0.5, [outcome(0, 1, 2, 3, stage=1)])
    response = RESPONSES["ModelInfer"].FromString(body)
    assert (response.model_name, response.model_version, response.id) == ("cascade", "1", "r1")
    assert [output.name for output in response.outputs] == ["exit_stage", "energy", "logits", "label"]
    assert raw(response, "logits") == np.arange(4, dtype=np.float32).tobytes()
    assert raw(response, "label") == elements(b"class 3")
    assert [len(response.raw_output_contents[place]) for place in (0, 1)] == [4, 8]
    assert not any(output.HasField("contents") for output in response.outputs)


def test_what_is_said_beside_the_outputs_keeps_its_kind() -> None:
    body = write(Asked(None, Question(Options()), []), FakeModel(), 0.5, [outcome(0, 1, 2, 3, truncated=True)])
    response = RESPONSES["ModelInfer"].FromString(body)
    assert response.parameters["threshold"].double_param == 0.5
    assert response.parameters["truncated"].bool_param is True
    assert response.id == ""


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(RequestError, match=r"no inference\.ModelInferRequest"):
        parse(REQUESTS["ModelInfer"], b"\xff")


def test_messages_are_in_nobody_elses_way() -> None:
    from google.protobuf import descriptor_pool

    kind("inference.ModelInferRequest")
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("inference.proto")
