"""Bytes to checked arrays, and outcomes to bytes. Nothing here waits or touches the network."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from cascade.errors import BadShape, DeadlineExceeded, RequestError, TooLarge, UnsupportedType
from cascade.exits import Floats, Threshold
from cascade.manifest import Manifest, Preprocess
from cascade.pixels import Pixels
from server.images import glance, read_image
from server.multipart import read_parts
from server.options import FROM_TEXT, Options, read_options
from server.outcome import Outcome
from server.runtime import Images

LIGHT_PIXELS = 2**17  # decoded in about half a millisecond


@dataclass(frozen=True)
class Caps:
    """How much one request may hold.

    Attributes:
        images: how many images.
        pixels: width times height of each.
    """

    images: int
    pixels: int


@dataclass(frozen=True)
class Question:
    """A request, taken apart but not yet decoded: encoded images or ready inputs.

    Attributes:
        options: what was asked for beside the images.
        images: encoded images.
        inputs: (N, 3, H, W) float32, preprocessed, instead of images.
        pixels: (N, 3, H, W) uint8, of the right size, instead of images.
    """

    options: Options
    images: Sequence[bytes] = ()
    inputs: Floats | None = None
    pixels: Pixels | None = None

    def is_light(self) -> bool:
        """Whether decoding it takes so little that it is not worth a thread."""
        total = 0
        for data in self.images:
            if (seen := glance(data)) is None or (total := total + seen.pixels) > LIGHT_PIXELS:
                return False
        return True


def read_question(
    content_type: str, body: bytes, query: Iterable[tuple[str, str]], rule: Preprocess, caps: Caps
) -> Question:
    """Take a request apart.

    Args:
        content_type: the header, or nothing.
        body: all of it.
        query: names and values of the query string.
        rule: the bundle's preprocessing, which knows the shape of inputs.
        caps: how much it may hold.

    Raises:
        RequestError: or one of its kinds, that says what to send instead.
    """
    kind = content_type.partition(";")[0].strip().lower()
    raw = kind.startswith("image/") or kind == "application/octet-stream"
    if not raw and kind not in ("multipart/form-data", "application/json"):
        raise UnsupportedType(
            f"Content-Type {kind or '(none)'} is not understood: send image/* or application/octet-stream for one "
            "image, multipart/form-data for several, or application/json"
        )
    if not body:
        raise RequestError("the body is empty: send an image, a form of images, or JSON")
    if raw:
        return Question(read_options(query), [body])
    if kind == "application/json":
        return _read_json(body, query, rule, caps)
    return _read_form(content_type, body, query, caps)


def _read_form(content_type: str, body: bytes, query: Iterable[tuple[str, str]], caps: Caps) -> Question:
    parts = read_parts(content_type, body, caps.images + len(FROM_TEXT))
    images = [part.data for part in parts if part.is_file]
    fields = [(part.name, part.data.decode("utf-8", "replace")) for part in parts if not part.is_file]
    options = read_options([*query, *fields])
    if not images:
        raise RequestError("the form holds no image: give each image a part with a file name")
    _check_count(len(images), caps)
    return Question(options, images)


def _read_json(body: bytes, query: Iterable[tuple[str, str]], rule: Preprocess, caps: Caps) -> Question:
    try:
        document = json.loads(body, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise RequestError('the JSON must be an object: {"images": ["<base64>", ...]} or {"inputs": [[...]]}')
    given = {name: document.pop(name) for name in ("images", "inputs") if name in document}
    options = read_options(query, document.items())
    if len(given) != 1:
        raise RequestError('the JSON needs either "images" or "inputs", and not both')
    if "images" in given:
        return Question(options, _from_base64(given["images"], caps))
    return Question(options, inputs=_read_inputs(given["inputs"], rule, caps))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number: every number must be finite")


def _from_base64(values: Any, caps: Caps) -> list[bytes]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise RequestError('"images" must be a list of base64 strings, at least one')
    _check_count(len(values), caps)
    result = []
    for number, value in enumerate(values):
        try:
            result.append(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"images[{number}] is not base64: {error}") from error
    return result


def _check_count(count: int, caps: Caps) -> None:
    if count > caps.images:
        raise TooLarge(f"{count} images in one request, the limit is {caps.images}: split the request")


def _read_inputs(values: Any, rule: Preprocess, caps: Caps) -> Floats:
    expected = f"(3, {rule.size}, {rule.size}) or (N, 3, {rule.size}, {rule.size})"
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise BadShape(f"inputs must be lists of numbers of shape {expected}: these are ragged or too deep") from error
    if array.dtype.kind not in "iuf":
        raise BadShape(f"inputs must be numbers alone, of shape {expected}")
    if array.ndim == 3:
        array = array[np.newaxis]
    if array.ndim != 4 or array.shape[1:] != (3, rule.size, rule.size) or not len(array):
        raise BadShape(f"inputs have shape {array.shape}, expected {expected}")
    _check_count(len(array), caps)
    with np.errstate(over="ignore"):
        result: Floats = array.astype(np.float32)
    if not np.isfinite(result).all():
        raise BadShape("inputs must be finite as 32-bit floats: NaN, infinity and numbers beyond 3.4e38 are refused")
    return result


def decode(question: Question, rule: Preprocess, caps: Caps, is_late: Callable[[], bool]) -> Images:
    """Decode, resize and crop.

    Args:
        question: as it was taken apart.
        rule: the bundle's preprocessing.
        caps: how much it may hold.
        is_late: asked before each image, so that a thread is not held for an answer nobody waits for.

    Returns:
        N of (3, H, W): float32 where they came preprocessed, uint8 otherwise.

    Raises:
        BadImage: an image cannot be decoded.
        TooLarge: an image has too many pixels.
        DeadlineExceeded: time ran out.
    """
    if question.inputs is not None:
        return question.inputs
    if question.pixels is not None:
        return question.pixels
    pixels = []
    for number, data in enumerate(question.images):
        if is_late():
            raise DeadlineExceeded("the images could not be decoded in time: send fewer or smaller ones")
        name = "the image" if len(question.images) == 1 else f"image {number}"
        pixels.append(read_image(data, rule, caps.pixels, name))
    return pixels


def encode(outcomes: Sequence[Outcome], manifest: Manifest, threshold: Threshold, options: Options) -> bytes:
    """Write the answer as JSON. A number that is not finite, which JSON cannot say, becomes null."""
    predictions = []
    for outcome in outcomes:
        shares, best = outcome.shares, _best(outcome.logits, options.top_k)
        top = [{"label": manifest.labels[index], "class": index, "score": _finite(shares[index])} for index in best]
        prediction: dict[str, Any] = {**top[0], "stage": outcome.stage, "energy": _finite(outcome.energy), "top": top}
        if options.logits:
            prediction["logits"] = [_finite(value) for value in outcome.logits]
        if outcome.truncated:
            prediction["truncated"] = True
        predictions.append(prediction)
    answer = {
        "model": manifest.name,
        "version": manifest.version,
        "threshold": threshold,
        "predictions": predictions,
    }
    return orjson.dumps(answer)


def _best(logits: Floats, count: int) -> list[int]:
    """The classes with the largest logits; the first is argmax's, ties and NaN included."""
    if count == 1:
        return [int(logits.argmax())]
    order = [int(index) for index in np.argsort(-logits, kind="stable")]
    first = int(logits.argmax())
    order.remove(first)
    return [first, *order][:count]


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
