"""What a cascade looks like in the protocol: one input, five outputs, and which of a request's parameters steer it.

The input `image` is declared as FP32, preprocessed, since clients read one datatype for each name. The datatype of a
request decides what its `image` holds: FP32 is that; UINT8 is raw RGB of the network's own size, which the server
normalises; BYTES is encoded images, which the server decodes, resizes and normalises. In JSON, whose strings cannot
hold an encoded image, BYTES is base64. `properties` of the model's metadata says the same to people.

Energies are FP64, as they are inside: what is reported is the very number that was compared with the threshold.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BadShape, RequestError, TooLarge
from cascade.exits import Floats
from cascade.manifest import Manifest
from server.oip.datatypes import Array, Shape
from server.oip.parameters import read_whole
from server.oip.request import InferRequest, InputTensor, RequestedOutput, TensorSpec
from server.options import Options, read_options

INPUT = "image"
RANKED = ("logits", "probabilities")
STEERING = ("threshold", "max_stage", "profile", "priority")


@dataclass(frozen=True)
class Question:
    """What a request asks the cascade: images in one of three forms.

    Attributes:
        options: threshold and last stage.
        images: encoded images.
        pixels: (N, 3, S, S) uint8 RGB, instead.
        inputs: (N, 3, S, S) float32, preprocessed, instead.
        timeout_s: longest time the client will wait; None for the server's own.
    """

    options: Options
    images: Sequence[bytes] = ()
    pixels: NDArray[np.uint8] | None = None
    inputs: Floats | None = None
    timeout_s: float | None = None

    @property
    def count(self) -> int:
        """How many images there are; 0 for an empty batch."""
        arrays = [array for array in (self.pixels, self.inputs) if array is not None]
        return len(arrays[0]) if arrays else len(self.images)


def input_of(manifest: Manifest) -> TensorSpec:
    """The declared input."""
    size = manifest.preprocess.size
    return TensorSpec(INPUT, "FP32", (-1, 3, size, size))


def outputs_of(manifest: Manifest) -> Sequence[TensorSpec]:
    """The outputs, in the order in which they are given."""
    classes = len(manifest.labels)
    return (
        TensorSpec("logits", "FP32", (-1, classes)),
        TensorSpec("probabilities", "FP32", (-1, classes)),
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("exit_stage", "INT32", (-1,)),
        TensorSpec("energy", "FP64", (-1,)),
    )


def read_outputs(request: InferRequest, manifest: Manifest) -> Sequence[RequestedOutput]:
    """Which outputs to give, in the order asked for; all of them where none is named.

    Raises:
        RequestError: there is no such output, or it has no classes to name.
    """
    names = [spec.name for spec in outputs_of(manifest)]
    for output in request.outputs:
        if output.name not in names:
            raise RequestError(f"there is no output {output.name[:60]!r}: the outputs are {', '.join(names)}")
        if output.classification is not None and output.name not in RANKED:
            raise RequestError(
                f"output {output.name!r} ranks no classes: ask for classification of {', '.join(RANKED)}"
            )
    return request.outputs or [RequestedOutput(name, request.binary) for name in names]


def read_question(request: InferRequest, manifest: Manifest, most: int) -> Question:
    """What a request asks.

    Args:
        request: as it was taken apart.
        manifest: of the model that is asked.
        most: images one request may hold.

    Raises:
        RequestError: the input is not one of the forms above, or a parameter is out of place.
        TooLarge: there are too many images.
    """
    options, timeout_s = _read_options(request), _read_timeout(request)
    tensor = _only_input(request)
    _check_shape(tensor, manifest.preprocess.size)
    if tensor.shape[0] > most:
        raise TooLarge(f"{tensor.shape[0]} images in one request, the limit is {most}: split the request")
    array = tensor.array()
    if tensor.datatype == "BYTES":
        return Question(options, images=_encoded(array, tensor.binary), timeout_s=timeout_s)
    if tensor.datatype == "UINT8":
        return Question(options, pixels=_channels_first(array), timeout_s=timeout_s)
    if not np.isfinite(array).all():
        raise BadShape(f"input {INPUT!r} must be finite: NaN and infinity are refused")
    return Question(options, inputs=array, timeout_s=timeout_s)


def _read_options(request: InferRequest) -> Options:
    return read_options((), [(name, request.parameters[name]) for name in STEERING if name in request.parameters])


def _read_timeout(request: InferRequest) -> float | None:
    """Seconds; 0 is the server's own."""
    timeout_us = read_whole(request.parameters, "timeout", 0, "the request")
    return timeout_us / 1e6 if timeout_us else None


def _only_input(request: InferRequest) -> InputTensor:
    for tensor in request.inputs:
        if tensor.name != INPUT:
            raise RequestError(f"there is no input {tensor.name[:60]!r}: the only input is {INPUT!r}")
    return request.inputs[0]


def forms_of(size: int) -> Mapping[str, Sequence[Shape]]:
    """For each datatype, the shapes that one image may have; the declared one first.

    Args:
        size: height and width of the network's input.
    """
    return {"FP32": [(3, size, size)], "UINT8": [(3, size, size), (size, size, 3)], "BYTES": [(), (1,)]}


def forms_in_words(size: int) -> str:
    """All datatypes and shapes of the input, N for the batch."""
    words = [
        f"{datatype} {' or '.join(str(['N', *shape]).replace(chr(39), '') for shape in shapes)}"
        for datatype, shapes in forms_of(size).items()
    ]
    return "; ".join(words)


def _check_shape(tensor: InputTensor, size: int) -> None:
    shapes = forms_of(size).get(tensor.datatype, ())
    if not tensor.shape or tensor.shape[1:] not in shapes:
        raise BadShape(f"input {INPUT!r} is {tensor.datatype} {list(tensor.shape)}: send {forms_in_words(size)}")


def _channels_first(array: Array) -> NDArray[np.uint8]:
    """Raw pixels as (N, 3, S, S); where both readings are possible, which takes S = 3, they are so already."""
    return array if array.shape[1] == 3 else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _encoded(array: Array, binary: bool) -> list[bytes]:
    elements: list[bytes] = array.reshape(math.prod(array.shape)).tolist()
    return elements if binary else [_from_base64(element, place) for place, element in enumerate(elements)]


def _from_base64(element: bytes, place: int) -> bytes:
    try:
        return base64.b64decode(element, validate=True)
    except binascii.Error as error:
        raise RequestError(
            f"element {place} of input {INPUT!r} is not base64 ({error}): send encoded images so, or as binary data"
        ) from error
