"""A good manifest as plain JSON values, and ways to spoil it."""

from __future__ import annotations

import copy
from typing import Any

from cascade.bundle import sha256
from tests.builders import onnx_model, tiny_manifest

Document = dict[str, Any]

MODELS = [onnx_model(seed) for seed in range(3)]
NETWORK = {"name": "S0", "accuracy": 0.9, "macs": 10000.0, "energy": 0.8}
FIGURES: Document = {
    "split": "dv",
    "samples": 100,
    "teacher": {**NETWORK, "name": "teacher"},
    "sums": [NETWORK, NETWORK, NETWORK],
    "adaptive": {"name": "adaptive", "accuracy": 0.9, "macs": 12000.0, "energy": None},
    "exits": [0.5, 0.3, 0.2],
}

FUSED: Document = {
    "file": "cascade.onnx",
    "sha256": sha256(MODELS[0]),
    "inputs": [
        {"name": "images", "shape": [None, 3, 8, 8], "dtype": "float32"},
        {"name": "threshold", "shape": [None, None], "dtype": "float64"},
    ],
    "outputs": [{"name": "label", "shape": [None], "dtype": "int64"}],
    "pixels": False,
}


def document() -> Document:
    """A manifest of three stages."""
    return copy.deepcopy(tiny_manifest(MODELS).document())


def put(path: str, value: Any) -> Document:
    """A good document with one value changed; `path` is dotted, numbers are places in a list."""
    result = document()
    place: Any = result
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        place = place[part]
    place[last] = value
    return result


def drop(path: str) -> Document:
    """A good document without one key."""
    result = document()
    place: Any = result
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        place = place[part]
    del place[last]
    return result
