"""The fused file of a bundle in onnxruntime, held against the stages that it was made of. No torch, no onnx."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.files import Fused, Value
from cascade.pixels import Pixels, normalise
from cascade.replay import Replay, replay
from export.session import Session, opened

TOLERANCE = 1e-4  # of a logit, between the batches that its stage may run in
APART = 1e-6  # energies further apart than this differ by more than rounding
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


class Whole:
    """A fused cascade in onnxruntime, one thread, CPU.

    Args:
        model: the ONNX file's bytes.

    Raises:
        BundleError: onnxruntime cannot load it.
    """

    def __init__(self, model: bytes) -> None:
        self._session = opened(model, "fused.file")

    def signature(self) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Inputs and outputs as a manifest says them.

        Raises:
            BundleError: one is of a type that no fused cascade has.
        """
        return _values(self._session.get_inputs()), _values(self._session.get_outputs())

    def run(self, images: NDArray[np.float32] | Pixels, threshold: float) -> Replay:
        """Answer one batch.

        Args:
            images: (N, 3, S, S) float32, or (N, H, W, 3) uint8, as the file wants them.
            threshold: for all of them, at every stage.

        Raises:
            BundleError: the graph fails on it.
        """
        feeds = {"images": images, "threshold": np.array([[threshold]], np.float64)}
        try:
            logits, labels, stages, energies = self._session.run(["logits", "label", "exit_stage", "energy"], feeds)
        except Exception as error:  # onnxruntime's own exception types share no public base
            raise BundleError(
                "fused.file", f"onnxruntime cannot run it on a batch of {len(images)}: {error}"
            ) from error
        return Replay(logits, labels, stages.astype(np.int64), energies)


def _values(tensors: Sequence[object]) -> tuple[Value, ...]:
    return tuple(_value(tensor) for tensor in tensors)


def _value(tensor: object) -> Value:
    name, kind, shape = (getattr(tensor, attribute) for attribute in ("name", "type", "shape"))
    if kind not in TYPES:
        raise BundleError("fused.file", f"{name!r} is of type {kind}, which no fused cascade has")
    return Value.model_validate(
        {"name": name, "dtype": TYPES[kind], "shape": [side if isinstance(side, int) else None for side in shape]}
    )


def check(bundle: Bundle, stages: Sequence[Session], pixels: Pixels) -> None:
    """Run the fused file, if there is one, beside the stages: same exits and classes, same logits and energies.

    Thresholds are such that all samples leave at once, that none does, and, for each stage, that the two neighbours
    furthest apart among its energies are parted, so that no rounding decides.

    Args:
        bundle: read.
        stages: its stages, which know how pixels are normalised.
        pixels: (N, 3, S, S) uint8.

    Raises:
        BundleError: the file is not what the manifest says, or does something else than the stages.
    """
    if bundle.fused is None or bundle.manifest.fused is None:
        return
    whole = Whole(bundle.fused)
    _check_signature(bundle.manifest.fused, whole)
    images = normalise(pixels, bundle.manifest.preprocess)
    given = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if bundle.manifest.fused.pixels else images
    logits = [stage.run(pixels) for stage in stages]
    definition = bundle.manifest.exit.definition
    energies = [replay(logits, np.inf, definition, max_stage=last).energies for last in range(len(logits))]
    for threshold in (-1.0, np.inf, *(middle for each in energies if (middle := between(each)) is not None)):
        _same(replay(logits, threshold, definition), whole.run(given, threshold), threshold)


def _check_signature(declared: Fused, whole: Whole) -> None:
    inputs, outputs = whole.signature()
    for side, said, found in (("inputs", declared.inputs, inputs), ("outputs", declared.outputs, outputs)):
        if said != found:
            raise BundleError(f"fused.{side}", f"the file has {_listed(found)}, the manifest says {_listed(said)}")


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(f"{value.name} {value.dtype} {value.shape}" for value in values)


def between(energies: NDArray[np.float64]) -> float | None:
    """The middle of the widest gap between energies, if one is wider than rounding."""
    ordered = np.sort(energies)
    gaps = np.diff(ordered)
    if not gaps.size or not (gaps > APART).any():
        return None
    place = int(np.argmax(gaps))
    return float((ordered[place] + ordered[place + 1]) / 2)


def _same(expected: Replay, found: Replay, threshold: float) -> None:
    where = f"with threshold {threshold:.6g}"
    for what, ours, theirs in (("exits", expected.stages, found.stages), ("classes", expected.classes, found.classes)):
        if not np.array_equal(ours, theirs):
            raise BundleError("fused.file", f"has {what} {theirs.tolist()} {where}, the stages have {ours.tolist()}")
    for what, mine, other in (
        ("logits", expected.logits, found.logits),
        ("energies", expected.energies, found.energies),
    ):
        if not np.allclose(mine, other, rtol=0, atol=TOLERANCE):
            difference = float(np.abs(mine - other).max())
            raise BundleError("fused.file", f"has {what} that differ from the stages' by {difference:.2g} {where}")
