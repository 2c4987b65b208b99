"""What the protocol's tests are made of: a manifest, outcomes, and bodies of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from cascade.exits import Floats
from cascade.manifest import Manifest
from server.oip.request import HEADER
from tests.builders import tiny_manifest

SIZE, CLASSES = 8, 4
MANIFEST: Manifest = tiny_manifest([b"0", b"1"], size=SIZE, classes=CLASSES)


@dataclass(frozen=True)
class FakeOutcome:
    """What a cascade would say about one image."""

    logits: Floats
    stage: int = 0
    energy: float = 0.5
    truncated: bool = False


def outcome(*logits: float, **fields: Any) -> FakeOutcome:
    """An outcome of these logits."""
    return FakeOutcome(np.array(logits, np.float32), **fields)


def image_entry(data: Any = None, shape: Sequence[int] = (1, 3, SIZE, SIZE), datatype: str = "FP32") -> dict[str, Any]:
    """An input; without data, zeros."""
    values = [0] * int(np.prod(shape)) if data is None else data
    return {"name": "image", "shape": list(shape), "datatype": datatype, "data": values}


def binary_entry(size: int, shape: Sequence[int] = (1, 3, SIZE, SIZE), datatype: str = "FP32") -> dict[str, Any]:
    """An input whose bytes follow."""
    parameters = {"binary_data_size": size}
    return {"name": "image", "shape": list(shape), "datatype": datatype, "parameters": parameters}


def request_body(*inputs: dict[str, Any], **members: Any) -> bytes:
    """The JSON of a request; without inputs, one image of zeros."""
    return orjson.dumps({"inputs": list(inputs) or [image_entry()], **members})


def with_tail(head: bytes, tail: bytes) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and bytes, and the header that tells them apart."""
    return head + tail, {HEADER: str(len(head))}


def elements(*values: bytes) -> bytes:
    """BYTES in binary."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)
