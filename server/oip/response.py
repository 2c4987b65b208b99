"""Outcomes to the head and the bytes of a response.

JSON data is written flat, and an output carries `parameters` only to hold `binary_data_size`: a client written in C++
misreads anything else. What we have to say beside the outputs stands in the response's own `parameters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from cascade.exits import Floats, Threshold, softmax
from cascade.manifest import Manifest
from server.oip.compression import choose, compress
from server.oip.datatypes import Array, Shape, objects, to_binary, to_json
from server.oip.model import outputs_of
from server.oip.parameters import Parameters
from server.oip.ports import Outcome
from server.oip.request import HEADER, RequestedOutput

COMPRESS_FROM_BYTES = 64 * 2**10


@dataclass(frozen=True)
class OutputTensor:
    """An output as it is given.

    Attributes:
        name: its name.
        datatype: one of `server.oip.datatypes.NAMES`.
        array: its values and its shape.
        binary: bytes rather than JSON.
    """

    name: str
    datatype: str
    array: Array
    binary: bool

    @property
    def shape(self) -> Shape:
        """Batch included."""
        return self.array.shape


@dataclass(frozen=True)
class Reply:
    """A response: its body and the headers that belong to it."""

    body: bytes
    headers: Mapping[str, str]


def tensors(
    outcomes: Sequence[Outcome], manifest: Manifest, wanted: Sequence[RequestedOutput]
) -> Sequence[OutputTensor]:
    """The outputs asked for, in that order.

    Args:
        outcomes: one an image; there may be none.
        manifest: of the model that answered.
        wanted: checked outputs.
    """
    logits = np.array([outcome.logits for outcome in outcomes], np.float32).reshape(-1, len(manifest.labels))
    datatypes = {spec.name: spec.datatype for spec in outputs_of(manifest)}
    found = []
    for output in wanted:
        array, datatype = _ARRAYS[output.name](logits, outcomes, manifest), datatypes[output.name]
        if output.classification is not None:
            array, datatype = classify(array, manifest.labels, output.classification), "BYTES"
        found.append(OutputTensor(output.name, datatype, array, output.binary))
    return found


def _labels(logits: Floats, _: Sequence[Outcome], manifest: Manifest) -> Array:
    return objects([manifest.labels[index].encode() for index in logits.argmax(axis=1)])


_ARRAYS: Mapping[str, Callable[[Floats, Sequence[Outcome], Manifest], Array]] = {
    "logits": lambda logits, _, __: logits,
    "probabilities": lambda logits, _, __: softmax(logits),
    "label": _labels,
    "exit_stage": lambda _, outcomes, __: np.array([outcome.stage for outcome in outcomes], np.int32),
    "energy": lambda _, outcomes, __: np.array([outcome.energy for outcome in outcomes], np.float64),
}


def classify(values: Floats, labels: Sequence[str], count: int) -> Array:
    """Name the best classes, as `value:index:label`.

    Args:
        values: (N, K), the larger the better.
        labels: K.
        count: how many classes to name; all of them where there are no more.

    Returns:
        (N, min(count, K)) BYTES, best first; of two alike, the one with the smaller index first.
    """
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    named = [
        f"{row[index]!s}:{index}:{labels[index]}".encode()
        for row, best in zip(values, order, strict=True)
        for index in best
    ]
    return objects(named).reshape(order.shape)


def response_parameters(threshold: Threshold | None, outcomes: Sequence[Outcome]) -> Parameters:
    """What to say beside the outputs.

    Args:
        threshold: that was used; None where nothing was compared with it.
        outcomes: one an image.
    """
    said: dict[str, float | bool | str] = {}
    if threshold is not None:  # a parameter holds no list
        said["threshold"] = ",".join(map(repr, threshold)) if isinstance(threshold, tuple) else threshold
    if any(outcome.truncated for outcome in outcomes):
        said["truncated"] = True
    return said


def write_response(
    name: str, version: str, id_: str | None, parameters: Parameters, outputs: Sequence[OutputTensor]
) -> Reply:
    """Write a response.

    Args:
        name: of the model.
        version: of the model.
        id_: of the request, if it had one.
        parameters: of the response; left out where there are none.
        outputs: in order.

    Raises:
        NotFinite: an output is asked for as JSON and holds what JSON cannot say.
    """
    parts = [to_binary(output.datatype, output.array) if output.binary else None for output in outputs]
    head: dict[str, Any] = {"model_name": name, "model_version": version}
    if id_ is not None:
        head["id"] = id_
    if parameters:
        head["parameters"] = parameters
    head["outputs"] = [_entry(output, part) for output, part in zip(outputs, parts, strict=True)]
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    tail = b"".join(part for part in parts if part)
    if not tail:
        return Reply(text, {"Content-Type": "application/json"})
    return Reply(text + tail, {"Content-Type": "application/octet-stream", HEADER: str(len(text))})


def _entry(output: OutputTensor, part: bytes | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
    if part is None:
        return {**entry, "data": to_json(output.datatype, output.array, f"output {output.name!r}")}
    return {**entry, "parameters": {"binary_data_size": len(part)}}


def compressed(reply: Reply, accept: str | None) -> Reply:
    """Compress a reply that is large, if the client can undo it. The length of the JSON stays that of the plain one.

    Args:
        reply: plain.
        accept: the header Accept-Encoding.
    """
    encoding = choose(accept) if len(reply.body) >= COMPRESS_FROM_BYTES else None
    if encoding is None:
        return reply
    return Reply(compress(reply.body, encoding), {**reply.headers, "Content-Encoding": encoding})
