"""A fused cascade as a model repository for Triton, and for KServe's Triton runtime.

`DIR/NAME/config.pbtxt`, `DIR/NAME/labels.txt` and `DIR/NAME/1/model.onnx`. Triton batches requests by itself: images,
thresholds and answers are all rows, and a request's threshold is its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.files import Value

MAX_BATCH = 64
TYPES = {
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
LABELS = "labels.txt"


def write_repository(bundle: Bundle, folder: Path) -> Path:
    """Write a bundle's fused file as version 1 of a model; one of that name is written over.

    Args:
        bundle: with a fused file.
        folder: of the repository.

    Returns:
        The model's folder.

    Raises:
        BundleError: there is no fused file, a label is more than a line, or the folder cannot be written.
    """
    if bundle.fused is None:
        raise BundleError("fused", "there is no fused file in the bundle: export it with --fused")
    for number, label in enumerate(bundle.manifest.labels):
        if len(label.splitlines()) != 1:
            raise BundleError(f"labels[{number}]", f"{label!r} is not one line, as Triton wants it")
    model = folder / bundle.manifest.name
    try:
        (model / "1").mkdir(parents=True, exist_ok=True)
        (model / "1" / "model.onnx").write_bytes(bundle.fused)
        (model / LABELS).write_text("".join(f"{label}\n" for label in bundle.manifest.labels), encoding="utf-8")
        (model / "config.pbtxt").write_text(config(bundle), encoding="utf-8")
    except OSError as error:
        raise BundleError(str(folder), f"cannot write the model repository: {error}") from error
    return model


def config(bundle: Bundle) -> str:
    """The model's `config.pbtxt`, in protobuf's text format.

    Args:
        bundle: with a fused file.
    """
    fused = bundle.manifest.fused
    assert fused is not None
    lines = [
        f"name: {json.dumps(bundle.manifest.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH}",
        "dynamic_batching { }",
        *(f"input {{ {_value(value)} }}" for value in fused.inputs),
        *(f"output {{ {_value(value)}{_labels(value)} }}" for value in fused.outputs),
    ]
    return "\n".join(lines) + "\n"


def _value(value: Value) -> str:
    """Name, type, and shape without the batch; a row that is one number is said to be reshaped to it."""
    row = ", ".join("-1" if side is None else str(side) for side in value.shape[1:])
    dims = f"dims: [ {row} ]" if row else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'name: "{value.name}" data_type: {TYPES[value.dtype]} {dims}'


def _labels(value: Value) -> str:
    return f' label_filename: "{LABELS}"' if value.name == "logits" else ""
