"""Which releases made a bundle."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("rescade", "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed; and Python's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
