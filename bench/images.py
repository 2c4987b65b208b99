"""Folders of images, read into memory before anything is measured.

Two layouts: flat, `DIR/*.jpg`, where nothing is known about the classes; and ImageFolder, `DIR/<class>/**/*.jpg`, where
the first folder's name is the label. The bytes are sent as they lie on disk; decoding is the server's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import AskedWrongly

CONTENT_TYPES = {
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".pgm": "image/x-portable-graymap",
    ".png": "image/png",
    ".ppm": "image/x-portable-pixmap",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}


@dataclass(frozen=True, slots=True)
class Found:
    """An image file that was found, not yet read.

    Attributes:
        path: where it lies.
        label: name of its class folder; `None` in a flat layout.
    """

    path: Path
    label: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, ready to be sent.

    Attributes:
        body: the bytes of the file.
        content_type: its media type.
        label: name of its class, if known.
    """

    body: bytes
    content_type: str
    label: str | None = None


def find(folder: Path) -> list[Found]:
    """List the images of a folder, sorted by path; hidden files and folders are passed over.

    Raises:
        AskedWrongly: no images, or images both in the folder itself and in folders below it.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in CONTENT_TYPES and not _hidden(path.relative_to(folder)) and path.is_file()
    )
    if not paths:
        raise AskedWrongly(f"{folder} holds no images ({', '.join(sorted(CONTENT_TYPES))})")
    found = [Found(path, _class_of(path.relative_to(folder))) for path in paths]
    if len({item.label is None for item in found}) == 2:
        raise AskedWrongly(f"{folder} holds images both directly and in folders: give a flat folder or an ImageFolder")
    return found


def read(found: Found) -> Sample:
    """Read one image file.

    Raises:
        AskedWrongly: it cannot be read.
    """
    try:
        body = found.path.read_bytes()
    except OSError as error:
        raise AskedWrongly(f"cannot read {found.path}: {error.strerror}") from error
    return Sample(body, CONTENT_TYPES[found.path.suffix.lower()], found.label)


def classes(samples: Sequence[Sample]) -> list[str]:
    """The names of the classes, sorted; empty for a flat layout."""
    return sorted({sample.label for sample in samples if sample.label is not None})


def order(count: int, seed: int) -> list[int]:
    """The order in which images are sent: shuffled, so that any part of a run mixes the classes.

    Args:
        count: number of images.
        seed: same seed, same order.
    """
    return [int(index) for index in np.random.default_rng(seed).permutation(count)]


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _class_of(relative: Path) -> str | None:
    return relative.parts[0] if len(relative.parts) > 1 else None
