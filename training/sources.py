"""Where images come from: torchvision's downloads, scikit-learn's digits, or a folder; decoded to uint8 arrays."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from cascade.errors import BadImage, RecipeError
from cascade.manifest import Preprocess
from cascade.pixels import to_pixels
from training.settings import DataConfig

IN_MEMORY_BYTES = 8 * 2**30
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """A train and a test part: images (N, S, S, 3) uint8, labels (N,) int64, class names."""

    train_images: NDArray[np.uint8]
    train_labels: Labels
    test_images: NDArray[np.uint8]
    test_labels: Labels
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Decoder:
    """Images to arrays by one rule, with a progress bar on `console`."""

    rule: Preprocess
    console: Console

    def stack(self, images: Iterable[Image.Image], count: int, spill: Path | None = None) -> NDArray[np.uint8]:
        """Decode to (count, S, S, 3) uint8, in memory or, where that is too much, in a mapped file without a name.

        Args:
            images: `count` of them.
            count: how many.
            spill: folder for the file; each process has its own, and it goes when the array goes.

        Raises:
            RecipeError: an image cannot be brought to size, or there is no place for the file.
        """
        shape = (count, self.rule.size, self.rule.size, 3)
        out: NDArray[np.uint8]
        if spill is not None and int(np.prod(shape, dtype=np.int64)) > IN_MEMORY_BYTES:
            try:
                with tempfile.TemporaryFile(dir=spill) as file:
                    out = np.memmap(file, np.uint8, "w+", shape=shape)
            except OSError as error:
                raise RecipeError(f"data.name: cannot put {count} decoded images into {spill}: {error}") from error
        else:
            out = np.empty(shape, np.uint8)
        for place, image in enumerate(track(images, "decoding", count, console=self.console, transient=True)):
            try:
                out[place] = to_pixels(image, self.rule).transpose(1, 2, 0)
            except BadImage as error:
                where = getattr(image, "filename", "") or f"image {place}"
                raise RecipeError(f"data.name: {where}: {error}") from error
        return out


def decode(config: DataConfig, rule: Preprocess, console: Console) -> Decoded:
    """Load and decode the data set that a recipe names.

    Raises:
        RecipeError: an unknown name, images that are missing or broken, or nothing to tell apart.
    """
    decoded = _decode(config, rule, console)
    if len(decoded.classes) < 2:
        raise RecipeError(
            f"data.name: {config.name} has one class, {decoded.classes[0]!r}: a cascade tells at least two apart; "
            "an image folder with train/ needs test/ or val/ beside it"
        )
    return decoded


def _decode(config: DataConfig, rule: Preprocess, console: Console) -> Decoded:
    kind, _, path = config.name.partition(":")
    if kind == "imagefolder" and path:
        return _image_folder(Path(path).expanduser(), config, Decoder(rule, console))
    if config.name == "digits":
        return _digits(config, Decoder(rule, console))
    if config.name in TORCHVISION:
        return _torchvision(config, Decoder(rule, console))
    known = ", ".join(["digits", *TORCHVISION, "imagefolder:PATH"])
    raise RecipeError(f"data.name: no data set is called {config.name!r}; there are {known}")


def files_digest(config: DataConfig) -> str | None:
    """What tells the images that a folder has for training from others that it had: sha256 over names and sizes.

    Contents are not read: an image that changes and keeps its length in bytes to the byte goes unnoticed.

    Returns:
        64 hex digits; None for any other data set, which its name tells from others.

    Raises:
        RecipeError: the folder is no folder of class folders.
    """
    kind, _, path = config.name.partition(":")
    if kind != "imagefolder":
        return None
    root = Path(path).expanduser()
    parts = _parts(root)
    listed = _listed(root if parts is None else parts[0])
    digest = hashlib.sha256()
    for file, _ in listed.samples:
        digest.update(os.fsencode(f"{file.removeprefix(str(listed.root))} {Path(file).stat().st_size}\n"))
    return digest.hexdigest()


def digit_scans() -> tuple[list[Image.Image], Labels]:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels, as grey Pillow images; and their labels."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.round(raw.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(scan) for scan in pixels], raw.target.astype(np.int64)


def split_by_class(labels: Labels, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Indices of a train and a test part, each ascending; every class gives the same share of its samples."""
    generator = np.random.default_rng([seed, 0])
    test: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        test += members[: max(1, round(fraction * len(members)))].tolist()
    chosen = np.zeros(len(labels), bool)
    chosen[test] = True
    return np.flatnonzero(~chosen).astype(np.int64), np.flatnonzero(chosen).astype(np.int64)


def part_of(labels: Labels, config: DataConfig) -> Labels:
    """Indices of the training images that the recipe takes, ascending: all, or as many of each class.

    Raises:
        RecipeError: a class has fewer.
    """
    if config.train_per_class is None:
        return np.arange(len(labels), dtype=np.int64)
    generator = np.random.default_rng([config.split_seed, 2])
    taken = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    if (least := min(map(len, taken))) < config.train_per_class:
        raise RecipeError(
            f"data.train_per_class is {config.train_per_class}, and the smallest class of {config.name} has {least} "
            "training images: take that many at most"
        )
    return np.sort(np.concatenate([members[: config.train_per_class] for members in taken])).astype(np.int64)


def _digits(config: DataConfig, decoder: Decoder) -> Decoded:
    scans, labels = digit_scans()
    train, test = split_by_class(labels, config.test_fraction, config.split_seed)
    train = train[part_of(labels[train], config)]
    images = decoder.stack(scans, len(scans))
    return Decoded(images[train], labels[train], images[test], labels[test], tuple(str(digit) for digit in range(10)))


def _torchvision(config: DataConfig, decoder: Decoder) -> Decoded:
    from torchvision import datasets

    build = getattr(datasets, TORCHVISION[config.name])
    root = Path(config.root).expanduser() / config.name
    try:
        parts = [build(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise RecipeError(
            f"data.name: cannot download {config.name} to {root}: {error}; "
            "put the files there by hand, or name an imagefolder:PATH"
        ) from error
    labels = [np.asarray(part.targets, np.int64) for part in parts]
    taken = part_of(labels[0], config)
    train = decoder.stack((parts[0][place][0] for place in taken), len(taken))
    test = decoder.stack((image for image, _ in parts[1]), len(parts[1]))
    return Decoded(train, labels[0][taken], test, labels[1], tuple(parts[0].classes))


def _parts(root: Path) -> tuple[Path, Path] | None:
    """Where a folder keeps training and test images apart; None where it does not."""
    train, test = root / "train", next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    return (train, test) if train.is_dir() and test else None


def _image_folder(root: Path, config: DataConfig, decoder: Decoder) -> Decoded:
    if (parts := _parts(root)) is not None:
        train_dir, test_dir = parts
        train, test = _listed(train_dir), _listed(test_dir)
        if train.classes != test.classes:
            raise RecipeError(f"data.name: {train_dir} and {test_dir} have different class folders")
        train = train.only(part_of(np.asarray(train.targets, np.int64), config))
        return Decoded(
            _decoded_files(train, decoder),
            np.asarray(train.targets, np.int64),
            _decoded_files(test, decoder),
            np.asarray(test.targets, np.int64),
            tuple(train.classes),
        )
    whole = _listed(root)
    images, labels = _decoded_files(whole, decoder), np.asarray(whole.targets, np.int64)
    train_index, test_index = split_by_class(labels, config.test_fraction, config.split_seed)
    train_index = train_index[part_of(labels[train_index], config)]
    return Decoded(
        images[train_index], labels[train_index], images[test_index], labels[test_index], tuple(whole.classes)
    )


@dataclass(frozen=True)
class _Listed:
    """Image files by class: `samples` are pairs of path and label, `targets` the labels."""

    root: Path
    classes: list[str]
    samples: list[tuple[str, int]]

    @property
    def targets(self) -> list[int]:
        return [label for _, label in self.samples]

    def only(self, places: Labels) -> _Listed:
        """Some of the files."""
        return replace(self, samples=[self.samples[place] for place in places])


def _listed(folder: Path) -> _Listed:
    """What torchvision's ImageFolder lists, in its order, where there may be no torch to import it with."""
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not classes:
            raise OSError("it has no folders")
        samples = []
        for label, name in enumerate(classes):
            found = [path for path in _files(folder / name) if path.lower().endswith(IMAGE_SUFFIXES)]
            if not found:
                raise OSError(f"there is no image in {name}")
            samples += [(path, label) for path in found]
    except OSError as error:
        raise RecipeError(f"data.name: {folder} is no folder of class folders with images: {error}") from error
    return _Listed(folder, classes, samples)


def _files(folder: Path) -> list[str]:
    """Every file below a folder; folders in order of their paths, and the files of each in order of their names."""
    walked = sorted((place, sorted(names)) for place, _, names in os.walk(folder, followlinks=True))
    return [str(Path(place) / name) for place, names in walked for name in names]


def _decoded_files(listed: _Listed, decoder: Decoder) -> NDArray[np.uint8]:
    def opened() -> Iterable[Image.Image]:
        for path, _ in listed.samples:
            try:
                with Image.open(path) as image:
                    image.load()
                    yield image
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise RecipeError(f"data.name: cannot decode {path}: {error}") from error

    return decoder.stack(opened(), len(listed.samples), listed.root)
