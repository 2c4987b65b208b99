"""Samples to calibrate on: every stage's logits, the labels, and what is known of their part in training."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from cascade.bundle import Bundle
from cascade.errors import RecipeError
from cascade.exits import Floats
from cascade.manifest import Manifest, Preprocess
from cascade.pixels import to_pixels
from export.session import sessions

if TYPE_CHECKING:
    from training.data import Split

Seen = Literal["no", "yes", "unknown"]
BATCH = 250
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class HeldOut:
    """N samples, run through every stage.

    Attributes:
        name: what they are.
        stage_logits: (N, K) a stage.
        labels: (N,) int64, if they are known.
        pixels: (N, 3, S, S) uint8, if they were images.
        seen: whether the networks were trained on them.
        why: how that is known, or what cannot be known; for people.
        fingerprint: of a recipe's split.
        other: another part of the same data, that calibration does not touch: the test part of a recipe.
    """

    name: str
    stage_logits: Sequence[Floats]
    labels: NDArray[np.int64] | None
    pixels: NDArray[np.uint8] | None
    seen: Seen
    why: str
    fingerprint: str | None = None
    other: HeldOut | None = None

    def __len__(self) -> int:
        return len(self.stage_logits[0])


def from_logits(path: Path, manifest: Manifest) -> HeldOut:
    """Read `stage0`, `stage1`, ... (N, K) and, if they are there, `labels` (N,) from an .npz file.

    Raises:
        RecipeError: it holds no such arrays, or not of this bundle's shapes.
    """
    names = [f"stage{number}" for number in range(len(manifest.stages))]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*names, "labels") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RecipeError(f"cannot read logits from {path}: {error}") from error
    if missing := [name for name in names if name not in arrays]:
        raise RecipeError(f"{path} has no {', '.join(missing)}: it must hold one (N, K) array a stage, and labels (N,)")
    labels = arrays.pop("labels", None)
    wanted = (len(arrays["stage0"]) if arrays["stage0"].ndim else 0, len(manifest.labels))
    for name, array in arrays.items():
        if array.shape != wanted or array.dtype.kind != "f":
            raise RecipeError(f"{path}: {name} must be floats of shape {wanted}, not {array.dtype} {array.shape}")
    if labels is not None and (labels.shape != wanted[:1] or labels.dtype.kind not in "iu"):
        raise RecipeError(f"{path}: labels must be whole numbers of shape {wanted[:1]}, not {labels.shape}")
    logits = [arrays[name].astype(np.float32) for name in names]
    truth = None if labels is None else _in_range(labels.astype(np.int64), wanted[1], str(path))
    why = "a file of logits does not say which samples they are of: that these are held out is your word"
    return HeldOut(path.name, logits, truth, None, "unknown", why)


def _in_range(labels: NDArray[np.int64], classes: int, where: str) -> NDArray[np.int64]:
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise RecipeError(f"{where}: labels must lie between 0 and {classes - 1}")
    return labels


def from_folder(root: Path, bundle: Bundle, console: Console) -> HeldOut:
    """Run the images of class folders through every stage; those of `test/` or `val/`, where there is one.

    Raises:
        RecipeError: no such folder, a class that the bundle does not know, or an image that cannot be read.
    """
    root = root.expanduser().resolve()
    part = next((root / name for name in ("test", "val") if (root / name).is_dir()), root)
    known = {label: number for number, label in enumerate(bundle.manifest.labels)}
    files = sorted(path for path in part.glob("*/*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise RecipeError(f"{part} holds no folders of images, one a class")
    if strange := sorted({path.parent.name for path in files} - set(known)):
        raise RecipeError(f"{part} has the class {strange[0]!r}, the bundle has {', '.join(known)}")
    labels = np.array([known[path.parent.name] for path in files], np.int64)
    pixels = np.stack(list(_decoded(files, bundle.manifest.preprocess, console)))
    seen, why = _of_folder(part, bundle.manifest)
    return HeldOut(str(part.name), run(bundle, pixels, console), labels, pixels, seen, why)


def _decoded(files: Sequence[Path], rule: Preprocess, console: Console) -> Iterator[NDArray[np.uint8]]:
    for path in track(files, "decoding", console=console, transient=True):
        try:
            with Image.open(path) as image:
                yield to_pixels(image, rule)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RecipeError(f"cannot decode {path}: {error}") from error


def _of_folder(part: Path, manifest: Manifest) -> tuple[Seen, str]:
    """What a folder's name says of its part in training."""
    trained = manifest.provenance.dataset
    name = part.parent.name if part.name in ("train", "test", "val") else part.name
    if trained != f"imagefolder:{name}":
        return "unknown", f"the bundle was trained on {trained}; whether {part} shares images with it cannot be known"
    if part.name in ("test", "val"):
        return "no", f"{part} is the test part of {trained}; the bundle's own test figures are of the same images"
    return "yes", f"{part} is what the bundle's data set {trained} is called: the networks were trained on it"


def from_recipe(path: Path, bundle: Bundle, console: Console) -> HeldOut:
    """Run D_v of a recipe through every stage; its test part is the `other`.

    Raises:
        RecipeError: the recipe or its data is wrong, or its images become other pixels than the bundle's.
    """
    from training.data import load
    from training.recipe import load as load_recipe

    recipe = load_recipe(path)
    _check_pixels(str(path), recipe.data.rule(), bundle.manifest.preprocess)
    data = load(recipe.data, quiet=console.quiet)
    if data.classes != bundle.manifest.labels:
        raise RecipeError(f"{path}: its data has other classes than the bundle, or in another order")
    test = _of_split("test", data.test, bundle, console, "unknown", "")
    fingerprint = data.dv.fingerprint()
    seen, why = _of_dv(fingerprint, bundle.manifest)
    if seen == "unknown" and recipe.run_id() == bundle.manifest.provenance.recipe:
        seen, why = _of_own_recipe(recipe.data.dv_exclude)
    return _of_split("D_v", data.dv, bundle, console, seen, why, fingerprint, test)


def _check_pixels(where: str, own: Preprocess, rule: Preprocess) -> None:
    """Data sets have the bundle's very pixels; they are resized with one filter, which no recipe can change."""
    for name in ("size", "resize", "resize_to", "crop", "interpolation"):
        ours, theirs = getattr(own, name), getattr(rule, name)
        if ours != theirs:
            advice = ": give a folder of images, which is resized as the bundle says" if name == "interpolation" else ""
            raise RecipeError(f"{where}: data.{name} is {ours}, the bundle has {theirs}{advice}")


def _of_dv(fingerprint: str, manifest: Manifest) -> tuple[Seen, str]:
    rule = manifest.exit.rule
    if rule.fingerprint is None:
        return "unknown", "the bundle does not say which samples its D_v was"
    if rule.fingerprint != fingerprint:
        return "yes", (
            "these are not the samples of the bundle's D_v: the fingerprints differ. Drawn from the training part, "
            "most of them were trained on"
        )
    if rule.held_out:
        return "no", "the fingerprint is that of the bundle's D_v, which was held out of training"
    return "yes", "the fingerprint is that of the bundle's D_v, which was trained on"


def _of_own_recipe(excluded: bool) -> tuple[Seen, str]:
    if excluded:
        return "no", "the recipe is the bundle's own, by its hash, and holds D_v out of training"
    return "yes", "the recipe is the bundle's own, by its hash, and trains on D_v as well"


def _of_split(
    name: str,
    split: Split,
    bundle: Bundle,
    console: Console,
    seen: Seen,
    why: str,
    fingerprint: str | None = None,
    other: HeldOut | None = None,
) -> HeldOut:
    pixels = np.ascontiguousarray(split.images[split.index].numpy().transpose(0, 3, 1, 2))
    labels = split.labels[split.index].numpy().astype(np.int64)
    return HeldOut(name, run(bundle, pixels, console), labels, pixels, seen, why, fingerprint, other)


def run(bundle: Bundle, pixels: NDArray[np.uint8], console: Console) -> list[Floats]:
    """Run every stage over (N, 3, S, S) uint8: one (N, K) array a stage."""
    loaded = sessions(bundle.models, bundle.manifest.preprocess)
    parts: list[list[Floats]] = [[] for _ in loaded]
    for start in track(range(0, len(pixels), BATCH), "running", console=console, transient=True):
        for part, session in zip(parts, loaded, strict=True):
            part.append(session.run(pixels[start : start + BATCH]))
    return [np.concatenate(part) for part in parts]


def find(data: str, bundle: Bundle, console: Console) -> HeldOut:
    """Take what `--data` names: a recipe, a folder, or a data set that recipes know, by its test part.

    Raises:
        RecipeError: it is none of them, or cannot be read.
    """
    path = Path(data.removeprefix("imagefolder:")).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return from_recipe(path, bundle, console)
    if path.is_dir() or data.startswith("imagefolder:"):
        return from_folder(path, bundle, console)
    return _from_name(data, bundle, console)


def _from_name(name: str, bundle: Bundle, console: Console) -> HeldOut:
    from training.data import load
    from training.settings import DataConfig

    rule = bundle.manifest.preprocess
    config = DataConfig(name=name, size=rule.size, resize=rule.resize, resize_to=rule.resize_to)
    _check_pixels(name, config.rule(), rule)
    data = load(config, quiet=console.quiet)
    if data.classes != bundle.manifest.labels:
        raise RecipeError(f"{name} has other classes than the bundle, or in another order")
    if name == bundle.manifest.provenance.dataset and name != "digits":
        why = f"the test part of {name}; the bundle's own test figures are of the same images"
        return _of_split(f"{name} test", data.test, bundle, console, "no", why)
    why = f"whether the test part of {name}, as split here, shares images with the bundle's training set is not known"
    return _of_split(f"{name} test", data.test, bundle, console, "unknown", why)
