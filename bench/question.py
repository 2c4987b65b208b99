"""What a user has at hand, as one request: files, bytes of files or ready inputs as its body, options as its target.

One image travels as it is, several as a form, and ready inputs as JSON: a float32 written in full comes back the same.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from bench.errors import AskedWrongly
from bench.images import CONTENT_TYPES
from bench.request import BINARY, predict_target

Array: TypeAlias = NDArray[np.floating[Any]]
Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Array
"""The bytes of an image file, the path of one, or a (3, H, W) array that is preprocessed already."""
Images: TypeAlias = Image | Sequence[Image]
"""One image, several of one kind, or an (N, 3, H, W) array."""

NAMED = (str, os.PathLike)
FILES = (bytes, bytearray, memoryview, *NAMED)


class Options(TypedDict, total=False):
    """What may be asked beside the images; what is left out is left to the server.

    Attributes:
        threshold: energy to be exceeded at an exit.
        profile: thresholds of the bundle by their name, instead.
        max_stage: last stage that may run; 0 is S0 alone.
        top_k: how many classes to name.
        logits: whether to give the logits.
        deadline_ms: time the server may take, milliseconds from the call; nothing is repeated after it.
        allow_truncated: whether at the deadline an answer of the stages that ran is better than none.
        priority: whose images run first where several wait: 1 before 2 before 3; 0 is as 2.
        request_id: name of the request in the server's log.
        timeout_s: longest time for the call with all its attempts, seconds; else the client's.
    """

    threshold: float | None
    profile: str | None
    max_stage: int | None
    top_k: int | None
    logits: bool
    deadline_ms: float | None
    allow_truncated: bool
    priority: int | None
    request_id: str | None
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Question:
    """The body of a request.

    Attributes:
        body: all of it.
        content_type: its media type.
        count: how many images it asks about.
    """

    body: bytes
    content_type: str
    count: int


def question(images: Images) -> Question:
    """Write the body of a request; files are read here, which may take its time.

    Raises:
        AskedWrongly: no images, files and arrays together, a file that cannot be read, or an array that is no input.
    """
    if isinstance(images, np.ndarray):
        return _inputs(images if images.ndim == 4 else images[np.newaxis])
    listed = [images] if isinstance(images, FILES) else list(images)
    if not listed:
        raise AskedWrongly("there is no image to ask about")
    arrays = [image for image in listed if isinstance(image, np.ndarray)]
    files = [_read(image) for image in listed if isinstance(image, FILES)]
    if len(arrays) == len(listed):
        return _inputs(_stacked(arrays))
    if len(files) < len(listed):
        raise AskedWrongly("images are bytes, paths or float arrays, and arrays do not mix with the others")
    return Question(*files[0], 1) if len(files) == 1 else _form(files, secrets.token_hex(16))


def target(options: Options) -> str:
    """The path and query of a request.

    Raises:
        AskedWrongly: an option is unknown, or the deadline is no time.
    """
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        raise AskedWrongly(f"unknown option {', '.join(unknown)}: the options are {', '.join(Options.__annotations__)}")
    deadline_ms = options.get("deadline_ms")
    if deadline_ms is not None and not 0 < deadline_ms < math.inf:
        raise AskedWrongly(f"deadline_ms is a positive number of milliseconds, not {deadline_ms}")
    return predict_target(
        {
            "threshold": options.get("threshold"),
            "max_stage": options.get("max_stage"),
            "top_k": options.get("top_k"),
            "logits": options.get("logits"),
            "allow_truncated": options.get("allow_truncated"),
            "profile": options.get("profile"),
            "priority": options.get("priority"),
        }
    )


def _read(image: bytes | bytearray | memoryview | str | os.PathLike[str]) -> tuple[bytes, str]:
    """The bytes of a file, and their media type as far as its name tells it."""
    if not isinstance(image, NAMED):
        return bytes(image), BINARY
    path = Path(image)
    try:
        return path.read_bytes(), CONTENT_TYPES.get(path.suffix.lower(), BINARY)
    except (OSError, ValueError) as error:
        raise AskedWrongly(f"cannot read the image {str(path)[:200]!r}: {error}") from error


def _form(files: Sequence[tuple[bytes, str]], boundary: str) -> Question:
    """A multipart form; the boundary is random, so that no image holds it."""
    pieces = []
    for number, (data, content_type) in enumerate(files):
        disposition = f'Content-Disposition: form-data; name="image"; filename="{number}"'
        pieces += [f"--{boundary}\r\n{disposition}\r\nContent-Type: {content_type}\r\n\r\n".encode(), data, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return Question(b"".join(pieces), f"multipart/form-data; boundary={boundary}", len(files))


def _stacked(arrays: Sequence[Array]) -> Array:
    try:
        return np.stack(arrays)
    except ValueError as error:
        raise AskedWrongly("inputs of one request must be of one shape") from error


def _inputs(array: Array) -> Question:
    """JSON of (N, 3, H, W) inputs."""
    if array.ndim != 4 or array.shape[1] != 3 or not array.size or array.dtype.kind != "f":
        raise AskedWrongly(
            f"inputs are floats of shape (3, H, W) or (N, 3, H, W), preprocessed as the bundle says, not {array.dtype} "
            f"of shape {array.shape}: send an image as the bytes of its file"
        )
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise AskedWrongly("inputs must be finite as 32-bit floats")
    body = json.dumps({"inputs": rounded.tolist()}, separators=(",", ":"))
    return Question(body.encode(), "application/json", len(array))
