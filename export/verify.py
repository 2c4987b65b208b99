"""Check a bundle without torch, by running it.

Signature, digests, graphs, shapes; that a sample's answer does not depend on its batch; and that the golden samples get
the logits, classes and exits here that they got where the bundle was made. Costs are counted where the `onnx` package
is installed, which serving does not need.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.files import Stage
from cascade.golden import check as check_golden
from cascade.golden import unpack
from cascade.manifest import Manifest, Preprocess
from cascade.pixels import Pixels, normalise
from cascade.signature import Trusted
from export import whole
from export.session import Array, Session, sessions

SAMPLES = 7
TOLERANCE = 1e-4
TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


@dataclass(frozen=True)
class Verified:
    """A bundle that passed.

    Attributes:
        manifest: its description.
        largest: largest difference of a logit between batch 1 and batch 7.
        counted: whether the costs were counted.
        golden: a stage's largest difference from the golden samples' logits; None where the bundle has none.
    """

    manifest: Manifest
    largest: float
    counted: bool
    golden: tuple[float, ...] | None = None


def verify(folder: Path, trusted: Trusted | None = None) -> Verified:
    """Read a bundle with every digest checked, load each stage, and run it.

    Args:
        folder: of the bundle.
        trusted: keys, one of which must have signed it; default that nobody need have.

    Raises:
        BundleError: names what is wrong.
        Untrusted: keys were given, and none of them signed this.
    """
    return check(bundle.read(folder, trusted))


def check(read: Bundle) -> Verified:
    """Load each stage of a bundle whose digests are checked, run it, and count its costs.

    Raises:
        BundleError: names what is wrong.
    """
    rule = read.manifest.preprocess
    noise = np.random.default_rng(0).integers(0, 256, (SAMPLES, 3, rule.size, rule.size), np.uint8)
    largest, stages = 0.0, sessions(read.models, rule)
    for number, (stage, session) in enumerate(zip(read.manifest.stages, stages, strict=True)):
        check_signature(stage, session, f"stages[{number}]")
        largest = max(largest, _batch_difference(session, noise, len(read.manifest.labels), f"stages[{number}]"))
        _check_normalising(session, noise, rule, f"stages[{number}]")
    whole.check(read, stages, noise)
    counted = importlib.util.find_spec("onnx") is not None
    if counted:
        _check_costs(read)
    return Verified(read.manifest, largest, counted, golden_differences(read, stages))


def _check_costs(read: Bundle) -> None:
    from export import count

    for number, (stage, model) in enumerate(zip(read.manifest.stages, read.models, strict=True)):
        count.check(stage, model, f"stages[{number}]")


def golden_differences(read: Bundle, stages: list[Session]) -> tuple[float, ...] | None:
    """Run a bundle's golden samples alone, together and normalised; gives what `cascade.golden.check` gives.

    Returns:
        Stage by stage; None where the bundle has none.

    Raises:
        BundleError: the stages do not say of them what they must.
    """
    if read.golden is None:
        return None
    golden = unpack(read.golden, read.manifest)
    pixels = golden.pixels()
    floats = normalise(pixels, read.manifest.preprocess)
    ways: list[tuple[Array | Pixels, int]] = [(pixels, 1), (pixels, len(pixels)), (floats, len(pixels))]
    differences = [
        check_golden(golden, [session.in_batches(images, size) for session in stages], read.manifest)
        for images, size in ways
    ]
    return tuple(map(max, *differences))


def check_signature(stage: Stage, session: Session, where: str) -> None:
    """The graph's input and output are what the manifest says.

    Raises:
        BundleError: they are not.
    """
    for side, declared, found in (("input", stage.input, session.input), ("output", stage.output, session.output)):
        shape, kind = tuple(size if isinstance(size, int) else None for size in found.shape), TYPES[declared.dtype]
        if found.name != declared.name or shape != declared.shape or found.type != kind:
            raise BundleError(
                f"{where}.{side}",
                f"the file has {found.name!r} {found.type} {shape}, the manifest says {declared.name!r} "
                f"{kind} {declared.shape}",
            )
    if session.takes.shift != stage.input.shift:
        raise BundleError(
            f"{where}.input.shift", f"the file has {session.takes.shift!r}, the manifest says {stage.input.shift!r}"
        )


def _check_normalising(session: Session, pixels: Pixels, rule: Preprocess, where: str) -> None:
    """A graph that takes pixels normalises them by the bundle's rule, and takes what is normalised as well.

    One on the grid of the pixels normalises nothing: this says that the pixels are found again from what is normalised,
    and the golden samples say by which rule that is.
    """
    if session.takes.dtype != "uint8":
        return
    difference = float(np.abs(session.run(pixels) - session.run(normalise(pixels, rule))).max())
    if not difference <= TOLERANCE:
        raise BundleError(
            f"{where}.input",
            f"logits of pixels differ by {difference:.2g} from those of the same images normalised by the manifest's "
            "rule: the graph has another mean or std",
        )


def _batch_difference(session: Session, images: Array | Pixels, classes: int, where: str) -> float:
    together, alone = session.run(images), session.in_batches(images, 1)
    if together.shape != (len(images), classes) or not np.isfinite(together).all():
        raise BundleError(
            where, f"gives {together.shape} for {len(images)} images of {classes} classes, or not numbers"
        )
    difference = float(np.abs(together - alone).max())
    if difference > TOLERANCE:
        raise BundleError(where, f"a sample's logits differ by {difference:.2g} with the batch it is in")
    return difference
