"""Golden samples: a few images that travel with a bundle, and what every stage must say about them.

Whoever has run the stages over the images, on whatever machine or device, hands the logits to `check` and learns
whether they are the cascade's: within the tolerance, with the same classes and the same exits. The exits are stored and
not only derived, so that a threshold which was moved past one of the samples is noticed too.

The file is an uncompressed `.npz`, for `numpy.load(file, allow_pickle=False)`: `images` (N, S, S, 3) uint8, the size of
the network, RGB; `logits` (stages, N, K) float32; `exits` (N,) int64; and, but for older files, `extremes` (2, 3)
float32. Nothing in it decides how much memory is taken: every array must have the shape that the manifest implies.

The extremes are what the bytes 0 and 255 become once they are normalised. A network that takes pixels on their own grid
answers the same whatever mean and std a manifest says, which only those who send normalised images would notice.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.files import GoldenFile
from cascade.manifest import Manifest, Preprocess
from cascade.pixels import Pixels, normalise
from cascade.replay import replay

FIELD = "golden"
ROUNDING = 1e-5  # of what is normalised, where a step of a byte is a hundred times as much or more


@dataclass(frozen=True)
class Golden:
    """The samples.

    Attributes:
        images: (N, S, S, 3) uint8.
        logits: (stages, N, K) float32, each stage's own.
        exits: (N,) int64, the stage at which each sample leaves.
        extremes: (2, 3) float32, as `extremes_of` gives them; None in older files.
    """

    images: Pixels
    logits: Floats
    exits: NDArray[np.int64]
    extremes: Floats | None = None

    def pixels(self) -> Pixels:
        """The images as the stages take them before normalisation: (N, 3, S, S) uint8."""
        return np.ascontiguousarray(self.images.transpose(0, 3, 1, 2))


def extremes_of(rule: Preprocess) -> Floats:
    """Normalise the bytes 0 and 255: (2, 3) float32, a row each, a column a channel."""
    bytes_ = np.broadcast_to(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), (2, 3, 1, 1))
    return normalise(bytes_, rule).reshape(2, 3)


def pack(golden: Golden) -> bytes:
    """The file's bytes; the same samples give the same bytes."""
    out = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {"images": golden.images, "logits": golden.logits, "exits": golden.exits}
    if golden.extremes is not None:
        arrays["extremes"] = golden.extremes
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def unpack(data: bytes, manifest: Manifest) -> Golden:
    """Read the file.

    Args:
        data: its bytes.
        manifest: of the bundle, which declares golden samples.

    Raises:
        BundleError: it is no such file, or its arrays are not what the manifest implies.
    """
    declared = _declared(manifest)
    count, size, classes = declared.samples, manifest.preprocess.size, len(manifest.labels)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return Golden(
                _array(archive, "images", np.dtype(np.uint8), (count, size, size, 3)),
                _array(archive, "logits", np.dtype(np.float32), (len(manifest.stages), count, classes)),
                _array(archive, "exits", np.dtype(np.int64), (count,)),
                _array(archive, "extremes", np.dtype(np.float32), (2, 3))
                if "extremes.npy" in archive.namelist()
                else None,
            )
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{FIELD}.file", f"{declared.file} holds no golden samples: {error}") from error


def _array(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """One array, whose header is believed only where it says what is expected."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, and could hold any amount")
    file = io.BytesIO(archive.read(entry))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} is of another version of the format")
    found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if by_columns or found != shape or kind != dtype:
        raise ValueError(f"{name} is {kind} {found}, not {dtype} {shape}")
    return np.frombuffer(file.read(), dtype).reshape(shape)


def check(golden: Golden, found: Sequence[Floats], manifest: Manifest) -> tuple[float, ...]:
    """Compare what the stages say here with what they must say.

    Args:
        golden: the samples.
        found: (N, K) float32 a stage, each the stage's own logits for the images, preprocessed by the manifest's rule.
        manifest: of the bundle, which declares the samples.

    Returns:
        The largest difference of a logit, a stage.

    Raises:
        BundleError: mean or std, logits by more than the tolerance, a class or an exit differs; says which.
    """
    tolerances, exit_rule = _declared(manifest).tolerance, manifest.exit
    _check_extremes(golden, manifest.preprocess)
    wanted = replay(list(golden.logits), exit_rule.threshold, exit_rule.definition)
    moved = np.flatnonzero(wanted.stages != golden.exits).tolist()
    if moved:
        raise BundleError(
            "exit.threshold",
            f"golden sample {moved[0]} left at stage {golden.exits[moved[0]]} when the bundle was made, and leaves at "
            f"stage {wanted.stages[moved[0]]} at the threshold {exit_rule.threshold} ({len(moved)} samples differ): "
            "the threshold, or the definition of the energy, was changed",
        )
    differences = []
    for number, (ours, theirs, tolerance) in enumerate(zip(golden.logits, found, tolerances, strict=True)):
        difference = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
        if not difference <= tolerance:  # NaN too
            raise BundleError(
                f"stages[{number}]",
                f"its logits for the golden samples differ by {difference:.2g} from those it had when the bundle was "
                f"made, more than {tolerance:.2g}: the network, the preprocessing or the runtime is another one",
            )
        differences.append(difference)
    here = replay(list(found), exit_rule.threshold, exit_rule.definition)
    for what, then, now in (("class", wanted.classes, here.classes), ("exit stage", wanted.stages, here.stages)):
        if wrong := np.flatnonzero(then != now).tolist():
            raise BundleError(
                FIELD,
                f"golden sample {wrong[0]} has {what} {now[wrong[0]]} here and {then[wrong[0]]} in the bundle "
                f"({len(wrong)} samples differ)",
            )
    return tuple(differences)


def _check_extremes(golden: Golden, rule: Preprocess) -> None:
    now = extremes_of(rule)
    if golden.extremes is not None and not np.allclose(now, golden.extremes, rtol=ROUNDING, atol=ROUNDING):
        raise BundleError(
            "preprocess",
            f"bytes of 0 and 255 become {now.tolist()} by the manifest's mean and std, and became "
            f"{golden.extremes.tolist()} when the bundle was made: mean or std was changed",
        )


def _declared(manifest: Manifest) -> GoldenFile:
    if manifest.golden is None:
        raise BundleError(FIELD, "the bundle carries no golden samples: `rescade golden` adds them")
    return manifest.golden


def choose(stage_logits: Sequence[Floats], manifest: Manifest, tolerance: Sequence[float], count: int) -> list[int]:
    """Choose samples whose classes and exits no machine within the tolerance can change.

    From each stage come as many, half of those that leave there nearest to the threshold and half farthest from it.
    Taken are samples whose every test, and whose class, holds wherever logits are off by the tolerance; where too few
    are so sure, those that come closest to it. Logits that move by at most t each move the energy E by at most t: the
    sum of |dE/dz_k| = 2 p_k |p_k - E| is twice the mean absolute deviation of a variable in [0, 1], which is at most
    1/2.

    Args:
        stage_logits: (N, K) a stage, of the candidates.
        manifest: with the exit rule.
        tolerance: a stage's largest difference of a logit.
        count: how many samples are wanted; at least two a stage are taken where they are to be had.

    Returns:
        Their rows, ascending.
    """
    stages, room, spare = _distances(stage_logits, manifest, tolerance)
    each = max(2, count // len(stage_logits))
    chosen: set[int] = set()
    for stage in range(len(stage_logits)):
        rows = np.flatnonzero(stages == stage)
        by_room = rows[np.argsort(room[rows], kind="stable")]
        sure = by_room[spare[by_room] > 0].tolist()
        unsure = rows[np.argsort(-spare[rows], kind="stable")].tolist()
        picks = [*sure[: each - each // 2], *sure[::-1][: each // 2], *unsure]
        chosen.update(list(dict.fromkeys(picks))[:each])
    return sorted(chosen)


def _distances(
    stage_logits: Sequence[Floats], manifest: Manifest, tolerance: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each sample: where it leaves, its least distance from the threshold, and what the tolerance leaves of it."""
    definition, threshold = manifest.exit.definition, manifest.exit.threshold
    final = replay(stage_logits, threshold, definition)
    error = np.cumsum(tolerance)
    ranked = np.sort(final.logits, axis=1)
    room = np.full(len(final.stages), np.inf)
    spare = (ranked[:, -1] - ranked[:, -2] - 2 * error[final.stages]).astype(np.float64)
    for stage in range(len(stage_logits) - 1):
        tested = final.stages >= stage
        distance = np.abs(replay(stage_logits, threshold, definition, max_stage=stage).energies - threshold)
        room[tested] = np.minimum(room, distance)[tested]
        spare[tested] = np.minimum(spare, distance - error[stage])[tested]
    return final.stages, room, spare
