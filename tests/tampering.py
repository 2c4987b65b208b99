"""Ways to spoil a bundle on disk, by accident and on purpose."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cascade.bundle import digest_of
from tests.builders import write_golden_bundle

Document = dict[str, Any]


def _edit(folder: Path, change: Callable[[Document], object], *, knowing: bool) -> None:
    """Change a manifest; `knowing` gives it a digest that fits."""
    document = json.loads((folder / "manifest.json").read_text())
    change(document)
    if knowing:
        document["digest"] = digest_of(document)
    (folder / "manifest.json").write_text(json.dumps(document))


def _threshold(document: Document) -> None:
    document["exit"]["threshold"] = 0.99


def _swap_stages(document: Document) -> None:
    first, second, *_ = document["stages"]
    for key in ("file", "sha256"):
        first[key], second[key] = second[key], first[key]


def _swap_mean_and_std(document: Document) -> None:
    rule = document["preprocess"]
    rule["mean"], rule["std"] = rule["std"], rule["mean"]


def _future(document: Document) -> None:
    document["format_version"] = 99


def _flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "stage1.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "stage1.onnx").write_bytes(data)


def _swap_files(folder: Path) -> None:
    (folder / "stage0.onnx").rename(folder / "aside")
    (folder / "stage1.onnx").rename(folder / "stage0.onnx")
    (folder / "aside").rename(folder / "stage1.onnx")


def _truncate_golden(folder: Path) -> None:
    os.truncate(folder / "golden.npz", 500)


def _by_accident(change: Callable[[Document], object]) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, change, knowing=False)


def _on_purpose(change: Callable[[Document], object]) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, change, knowing=True)


ACCIDENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of a network": (_flip_a_byte, "stages[1].sha256: stage1.onnx has digest"),
    "swapped network files": (_swap_files, "stages[0].sha256: stage0.onnx has digest"),
    "swapped stages": (_by_accident(_swap_stages), "digest: the manifest says"),
    "an edited threshold": (_by_accident(_threshold), "digest: the manifest says"),
    "a swapped mean and std": (_by_accident(_swap_mean_and_std), "digest: the manifest says"),
    "a manifest from the future": (_by_accident(_future), "format_version: this rescade reads"),
    "cut golden samples": (_truncate_golden, "golden.sha256: golden.npz has digest"),
}
"""What the digests catch: what to do to a folder, and how the message begins."""

EDITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "swapped stages": (_on_purpose(_swap_stages), "stages[0]: its logits for the golden samples differ by"),
    "an edited threshold": (_on_purpose(_threshold), "exit.threshold: golden sample"),
    "a swapped mean and std": (_on_purpose(_swap_mean_and_std), "stages[0]: its logits for the golden samples differ"),
}
"""What has digests that fit, and only the golden samples, or a signature, can catch."""


def _ship(folder: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "bundles" / "cifar10-int8", folder)


def mistake_normalising(folder: Path, change: str) -> None:
    """Give a manifest another `mean` or `std`, or each the `other`'s place, with digests that fit."""

    def act(document: Document) -> None:
        if change == "other":
            _swap_mean_and_std(document)
        else:
            document["preprocess"][change][1] *= 1.2

    _edit(folder, act, knowing=True)


WRITERS: dict[str, Callable[[Path], object]] = {
    "float32": write_golden_bundle,
    "uint8 with a shift": lambda folder: write_golden_bundle(folder, dtype="uint8"),
    "uint8 alone": _ship,
}
"""By what its graphs take: how to write a bundle with golden samples."""

MISTAKES = ["mean", "std", "other"]
