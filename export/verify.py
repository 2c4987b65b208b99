"""Check a bundle without torch: digests, graphs, shapes, costs, and that answers do not depend on the batch.

Costs are counted where the `onnx` package is installed, which serving does not need.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.manifest import Manifest, Stage
from cascade.pixels import normalise
from export.session import Array, Session, sessions

SAMPLES = 7
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verified:
    """A bundle that passed.

    Attributes:
        manifest: its own.
        largest: largest difference of a logit between batch 1 and batch 7.
        counted: whether the costs were counted.
    """

    manifest: Manifest
    largest: float
    counted: bool


def verify(folder: Path) -> Verified:
    """Read a bundle with every digest checked, load each stage, and run it.

    Raises:
        BundleError: names what is wrong.
    """
    return check(bundle.read(folder))


def check(read: Bundle) -> Verified:
    """Load each stage of a bundle whose digests are checked, run it, and count its costs.

    Raises:
        BundleError: names what is wrong.
    """
    rule = read.manifest.preprocess
    noise = np.random.default_rng(0).integers(0, 256, (SAMPLES, 3, rule.size, rule.size), np.uint8)
    images = normalise(noise, rule)
    largest = 0.0
    for number, (stage, session) in enumerate(zip(read.manifest.stages, sessions(read.models), strict=True)):
        check_signature(stage, session, f"stages[{number}]")
        largest = max(largest, _batch_difference(session, images, len(read.manifest.labels), f"stages[{number}]"))
    counted = importlib.util.find_spec("onnx") is not None
    if counted:
        _check_costs(read)
    return Verified(read.manifest, largest, counted)


def _check_costs(read: Bundle) -> None:
    from export import count

    for number, (stage, model) in enumerate(zip(read.manifest.stages, read.models, strict=True)):
        count.check(stage, model, f"stages[{number}]")


def check_signature(stage: Stage, session: Session, where: str) -> None:
    """The graph's input and output are what the manifest says.

    Raises:
        BundleError: they are not.
    """
    for side, declared, found in (("input", stage.input, session.input), ("output", stage.output, session.output)):
        shape = tuple(size if isinstance(size, int) else None for size in found.shape)
        if found.name != declared.name or shape != declared.shape or found.type != "tensor(float)":
            raise BundleError(
                f"{where}.{side}",
                f"the file has {found.name!r} {found.type} {shape}, the manifest says {declared.name!r} "
                f"tensor(float) {declared.shape}",
            )


def _batch_difference(session: Session, images: Array, classes: int, where: str) -> float:
    together, alone = session.run(images), session.in_batches(images, 1)
    if together.shape != (len(images), classes) or not np.isfinite(together).all():
        raise BundleError(
            where, f"gives {together.shape} for {len(images)} images of {classes} classes, or not numbers"
        )
    difference = float(np.abs(together - alone).max())
    if difference > TOLERANCE:
        raise BundleError(where, f"a sample's logits differ by {difference:.2g} with the batch it is in")
    return difference
