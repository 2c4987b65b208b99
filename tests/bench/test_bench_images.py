"""Folders of images: which layout, which label, which media type."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import images
from bench.errors import AskedWrongly
from bench.images import Sample


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def load(folder: Path) -> list[Sample]:
    return [images.read(found) for found in images.find(folder)]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    samples = load(put(tmp_path, "b.PNG", "a.jpg", "notes.txt", ".hidden.jpg"))
    assert samples == [Sample(b"a.jpg", "image/jpeg"), Sample(b"b.PNG", "image/png")]
    assert images.classes(samples) == []


def test_in_an_image_folder_the_first_folder_is_the_class(tmp_path: Path) -> None:
    samples = load(put(tmp_path, "dog/x.webp", "cat/deep/er/y.tif", ".cache/z.jpg"))
    assert samples == [Sample(b"cat/deep/er/y.tif", "image/tiff", "cat"), Sample(b"dog/x.webp", "image/webp", "dog")]
    assert images.classes(samples) == ["cat", "dog"]


def test_a_mixed_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="both directly and in folders"):
        images.find(put(tmp_path, "a.jpg", "cat/b.jpg"))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="holds no images"):
        images.find(put(tmp_path, "notes.txt"))


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    (found,) = images.find(put(tmp_path, "a.jpg"))
    found.path.unlink()
    with pytest.raises(AskedWrongly, match=r"a\.jpg"):
        images.read(found)


def test_the_order_is_a_shuffle_that_a_seed_repeats() -> None:
    assert sorted(images.order(50, 7)) == list(range(50))
    assert images.order(50, 7) == images.order(50, 7)
    assert images.order(50, 7) != images.order(50, 8)
