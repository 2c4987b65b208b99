"""The body of an inference request, taken apart.

With the header Inference-Header-Content-Length the body is that many bytes of JSON and then the bytes of the binary
inputs, one after the other; with the value 0 it is nothing but the bytes of the only input; without it, JSON alone.
Only this header decides, never the content type: some clients send none, or a wrong one.

What an input holds is left as it came. `InputTensor.array` reads it, once the shape is known to be one that is served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from cascade.errors import BadShape, RequestError
from server.oip.datatypes import FIXED, Array, Shape, from_binary, from_json, read_datatype, read_shape
from server.oip.parameters import Parameters, read_flag, read_parameters, read_whole

HEADER = "Inference-Header-Content-Length"
REQUEST_PARAMETERS = ("binary_data_output", "priority", "timeout", "threshold", "max_stage", "profile")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a model declares it.

    Attributes:
        name: its name.
        datatype: one of `server.oip.datatypes.NAMES`.
        shape: -1 is a dimension that varies; the first one is the batch.
    """

    name: str
    datatype: str
    shape: Shape


@dataclass(frozen=True)
class InputTensor:
    """An input as it was sent.

    Attributes:
        name: its name.
        datatype: one of `server.oip.datatypes.NAMES`.
        shape: batch included.
        data: decoded JSON, or bytes.
    """

    name: str
    datatype: str
    shape: Shape
    data: list[Any] | memoryview

    @property
    def binary(self) -> bool:
        """Whether it was sent as bytes."""
        return isinstance(self.data, memoryview)

    def array(self) -> Array:
        """Read the data.

        Raises:
            BadShape: it does not fit the datatype and the shape.
        """
        where = f"input {self.name!r}"
        if isinstance(self.data, memoryview):
            return from_binary(self.datatype, self.shape, self.data, where)
        return from_json(self.datatype, self.shape, self.data, where)


@dataclass(frozen=True)
class RequestedOutput:
    """An output as it was asked for.

    Attributes:
        name: its name.
        binary: bytes rather than JSON.
        classification: how many classes to name instead of all values; None for the values.
    """

    name: str
    binary: bool
    classification: int | None = None


Named = TypeVar("Named", InputTensor, RequestedOutput)


@dataclass(frozen=True)
class InferRequest:
    """An inference request.

    Attributes:
        inputs: at least one, no name twice.
        outputs: no name twice; none stands for all there are.
        id: to be echoed, if there is one.
        parameters: of the request as a whole.
        binary: the form of outputs that were not asked for by name.
    """

    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    binary: bool = False


def read_request(body: bytes, header: str | None, declared: TensorSpec) -> InferRequest:
    """Take a request apart.

    Args:
        body: without content encoding.
        header: the value of `HEADER`.
        declared: the model's only input, for a request that is nothing but its bytes.

    Raises:
        RequestError: it is no such request; the message says where and what to send instead.
    """
    if header is None:
        return _read_document(body, None)
    length = _read_length(header, len(body))
    if length == 0:
        return _read_raw(body, declared)
    view = memoryview(body)
    return _read_document(view[:length], view[length:])


def _read_length(header: str, most: int) -> int:
    text = header.strip()
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) > most:
        raise RequestError(
            f"{HEADER} is {text[:60]!r}: it must be the length of the JSON, from 0 to the body's {most} bytes"
        )
    return int(text)


def _read_raw(body: bytes, declared: TensorSpec) -> InferRequest:
    shape = (1, *declared.shape[1:])
    wanted = math.prod(shape) * FIXED[declared.datatype].itemsize
    if len(body) != wanted:
        raise BadShape(
            f"the body has {len(body)} bytes and {HEADER} is 0: one {declared.name!r} of {declared.datatype} "
            f"{list(shape)} has {wanted} bytes"
        )
    return InferRequest([InputTensor(declared.name, declared.datatype, shape, memoryview(body))], binary=True)


def _read_document(text: bytes | memoryview, tail: memoryview | None) -> InferRequest:
    """Read the JSON; `tail` is what follows it, None where nothing may."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the JSON of the body cannot be read: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise RequestError('the JSON must be an object: {"inputs": [...]}')
    parameters = read_parameters(document.get("parameters"), REQUEST_PARAMETERS, "the request")
    binary = read_flag(parameters, "binary_data_output", False, "the request")
    outputs = document.get("outputs")
    return InferRequest(
        inputs=_read_inputs(document.get("inputs"), tail),
        outputs=_each_once([] if outputs is None else outputs, "outputs", lambda entry: _read_output(entry, binary)),
        id=_read_id(document.get("id")),
        parameters=parameters,
        binary=binary,
    )


def _read_id(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RequestError("the id must be a string")
    return value


def _read_inputs(value: Any, tail: memoryview | None) -> Sequence[InputTensor]:
    if not value:
        raise RequestError('the request has no inputs: send {"inputs": [{"name", "shape", "datatype", "data"}]}')
    place = 0

    def take(size: int, where: str) -> memoryview:
        nonlocal place
        if tail is None:
            raise RequestError(f"{where} announces binary data, but the header {HEADER} is missing")
        begin, place = place, place + size
        if place > len(tail):
            raise RequestError(f"{where} announces {size} bytes, but the body has {len(tail) - begin} left for it")
        return tail[begin:place]

    inputs = _each_once(value, "inputs", lambda entry: _read_input(entry, take))
    if tail is not None and place < len(tail):
        raise RequestError(
            f"{len(tail) - place} bytes are left after the last input: state each binary_data_size in full"
        )
    return inputs


def _each_once(value: Any, what: str, read: Callable[[dict[str, Any]], Named]) -> Sequence[Named]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RequestError(f"{what!r} must be an array of objects")
    return once(map(read, value), what)


def once(tensors: Iterable[Named], what: str) -> Sequence[Named]:
    """Tensors, no two of one name.

    Args:
        tensors: as they were sent.
        what: they are, for the message.

    Raises:
        RequestError: a name is there twice.
    """
    found: dict[str, Named] = {}
    for tensor in tensors:
        if tensor.name in found:
            raise RequestError(f"{tensor.name[:60]!r} is in {what!r} twice: name each once")
        found[tensor.name] = tensor
    return list(found.values())


def _read_name(entry: dict[str, Any], what: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise RequestError(f"every {what} needs a name: a string")
    return name


def _read_input(entry: dict[str, Any], take: Callable[[int, str], memoryview]) -> InputTensor:
    name = _read_name(entry, "input")
    where = f"input {name[:60]!r}"
    shape, datatype = read_shape(entry.get("shape"), where), read_datatype(entry.get("datatype"), where)
    parameters = read_parameters(entry.get("parameters"), ("binary_data_size",), where)
    size = read_whole(parameters, "binary_data_size", 0, where)
    data = entry.get("data")
    if (data is None) == (size is None):
        raise RequestError(f"{where} needs either data or the parameter binary_data_size, and not both")
    if size is not None:
        return InputTensor(name, datatype, shape, take(size, where))
    if not isinstance(data, list):
        raise BadShape(f"{where} needs its data in an array")
    return InputTensor(name, datatype, shape, data)


def _read_output(entry: dict[str, Any], binary: bool) -> RequestedOutput:
    name = _read_name(entry, "output")
    where = f"output {name[:60]!r}"
    parameters = read_parameters(entry.get("parameters"), ("binary_data", "classification"), where)
    return RequestedOutput(
        name,
        read_flag(parameters, "binary_data", binary, where),
        read_whole(parameters, "classification", 1, where),
    )
