"""Requests and responses of inference, from messages and to messages. All of it fit for a thread.

A tensor's elements come raw, or in the typed field that is for its datatype; in a request either all inputs are raw or
none is. The answer is always raw, since some clients read nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cascade.errors import BadShape, RequestError
from cascade.exits import Threshold
from cascade.manifest import Manifest
from server.oip.datatypes import objects, read_datatype, read_shape, to_binary
from server.oip.infer import Asked
from server.oip.model import read_outputs, read_question
from server.oip.parameters import Parameters, read_flag, read_parameters, read_whole
from server.oip.ports import Limits, Model, Outcome
from server.oip.request import REQUEST_PARAMETERS, InferRequest, InputTensor, RequestedOutput, once
from server.oip.response import response_parameters, tensors
from server.rpc.messages import RESPONSES, Message

_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements of each datatype are; those that are not here exist raw alone."""


IGNORED = ("triton_enable_empty_final_response",)  # of streams; the client written in C++ sends it with every request


def read(message: Message, manifest: Manifest, limits: Limits) -> Asked:
    """Read a request.

    Args:
        message: ModelInferRequest.
        manifest: of the model that is asked.
        limits: of every request.

    Raises:
        RequestError: or one of its kinds, that says what to send instead.
    """
    request = read_request(message)
    outputs = read_outputs(request, manifest)
    return Asked(request.id, read_question(request, manifest, limits.images), outputs)


def read_request(message: Message) -> InferRequest:
    """Take a request apart.

    Args:
        message: ModelInferRequest.

    Raises:
        RequestError: it contradicts itself; the message says where and what to send instead.
    """
    parameters = _parameters(message.parameters, REQUEST_PARAMETERS, "the request")
    if not message.inputs:
        raise RequestError("the request has no inputs: send one, with name, datatype, shape and contents")
    raw: Sequence[bytes | None] = message.raw_input_contents or [None] * len(message.inputs)
    if len(raw) != len(message.inputs):
        raise RequestError(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs: send one for each, or none"
        )
    return InferRequest(
        inputs=once([_input(tensor, data) for tensor, data in zip(message.inputs, raw, strict=True)], "inputs"),
        outputs=once([_output(tensor) for tensor in message.outputs], "outputs"),
        id=message.id or None,
        parameters=parameters,
        binary=True,
    )


def _parameters(given: Mapping[str, Message], known: Sequence[str], where: str) -> Parameters:
    values = {}
    for name, value in given.items():
        if name in IGNORED:
            continue
        choice = value.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(value, choice)
    return read_parameters(values, known, where)


def _input(tensor: Message, raw: bytes | None) -> InputTensor:
    where = f"input {tensor.name[:60]!r}"
    shape, datatype = read_shape(list(tensor.shape), where), read_datatype(tensor.datatype, where)
    parameters = _parameters(tensor.parameters, ("binary_data_size",), where)
    read_whole(
        parameters, "binary_data_size", 0, where
    )  # some clients say it as over HTTP; raw contents know their size
    if raw is None:
        return InputTensor(tensor.name, datatype, shape, _contents(tensor, datatype, math.prod(shape), where))
    if tensor.HasField("contents"):
        raise RequestError(f"{where} has contents, and raw_input_contents are there too: send one of them")
    return InputTensor(tensor.name, datatype, shape, memoryview(raw))


def _contents(tensor: Message, datatype: str, count: int, where: str) -> list[bool | int | float] | memoryview:
    """The elements of the field for this datatype; BYTES are put into their binary form."""
    field = _FIELDS.get(datatype)
    if field is None:
        raise BadShape(f"{where} is {datatype}, for which there is no typed field: send it in raw_input_contents")
    if others := [used.name for used, _ in tensor.contents.ListFields() if used.name != field]:
        raise BadShape(f"{where} is {datatype} and belongs into {field}, not {', '.join(others)}")
    elements = list(getattr(tensor.contents, field))
    if len(elements) != count:
        raise BadShape(f"{where} has {len(elements)} elements in {field}, but its shape holds {count}")
    return memoryview(to_binary("BYTES", objects(elements))) if datatype == "BYTES" else elements


def _output(tensor: Message) -> RequestedOutput:
    where = f"output {tensor.name[:60]!r}"
    parameters = _parameters(tensor.parameters, ("binary_data", "classification"), where)
    read_flag(parameters, "binary_data", True, where)  # some clients say it, and it changes nothing here
    return RequestedOutput(tensor.name, True, read_whole(parameters, "classification", 1, where))


PARAMETERS = {bool: "bool_param", float: "double_param", str: "string_param"}


def write(asked: Asked, model: Model, threshold: Threshold | None, outcomes: Sequence[Outcome]) -> bytes:
    """Write the answer.

    Args:
        asked: what was asked.
        model: who answered.
        threshold: that was used; None for an empty batch.
        outcomes: one an image, in order.
    """
    response = RESPONSES["ModelInfer"](model_name=model.name, model_version=model.version, id=asked.id or "")
    for name, value in response_parameters(threshold, outcomes).items():
        setattr(response.parameters[name], PARAMETERS[type(value)], value)
    for output in tensors(outcomes, model.manifest, asked.outputs):
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        response.raw_output_contents.append(to_binary(output.datatype, output.array))
    body: bytes = response.SerializeToString()
    return body
