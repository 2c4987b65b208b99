"""Where images come from: real digits, folders, and torchvision's own files."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from rich.console import Console

from cascade.errors import RecipeError
from cascade.manifest import Preprocess
from cascade.pixels import to_pixels
from tests.training.folders import COLOURS, image_folder
from training.data import load
from training.settings import DataConfig
from training.sources import (
    IN_MEMORY_BYTES,
    Decoded,
    Decoder,
    _listed,
    decode,
    digit_scans,
    files_digest,
    split_by_class,
)

pytestmark = pytest.mark.train

QUIET = Console(quiet=True)
CIFAR10 = Path("~/.cache/rescade/cifar10").expanduser()


def decoded(name: str, **changes: Any) -> Decoded:
    config = DataConfig.model_validate({"name": name, "size": 8, **changes})
    return decode(config, config.rule(), QUIET)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails at once, on a port that nobody listens on."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


def test_digits_are_1797_scans_of_ten_classes() -> None:
    scans, labels = digit_scans()
    assert len(scans) == len(labels) == 1797
    assert sorted(set(labels.tolist())) == list(range(10))
    assert {(scan.size, scan.mode) for scan in scans} == {((8, 8), "L")}


def test_a_digits_greys_fill_the_8_bits() -> None:
    pixels = np.stack([np.asarray(scan) for scan in digit_scans()[0]])
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert len(np.unique(pixels)) == 17


def test_digits_are_split_a_class_at_a_time() -> None:
    data = decoded("digits", test_fraction=0.2)
    share = np.bincount(data.test_labels) / np.bincount(digit_scans()[1])
    assert share == pytest.approx(0.2, abs=0.005)
    assert data.classes == tuple("0123456789")


def test_digits_are_resized_as_serving_resizes_them() -> None:
    scans, labels = digit_scans()
    train, _ = split_by_class(labels, 0.2, 0)
    rule = Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))
    expected = to_pixels(scans[train[5]], rule).transpose(1, 2, 0)
    assert np.array_equal(decoded("digits", size=32).train_images[5], expected)


def test_a_split_is_a_matter_of_its_seed() -> None:
    labels = digit_scans()[1]
    one, same, other = (split_by_class(labels, 0.3, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_two_parts_of_a_split_are_everything_in_order() -> None:
    labels = np.array([0, 1, 2] * 10)
    train, test = split_by_class(labels, 0.5, 0)
    assert sorted([*train, *test]) == list(range(30))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


def test_the_smallest_class_has_a_test_image_too() -> None:
    _, test = split_by_class(np.array([0] * 50 + [1] * 2), 0.1, 0)
    assert np.bincount(np.array([0] * 50 + [1] * 2)[test]).tolist() == [5, 1]


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_folder_with_a_test_part_is_split_as_it_is(tmp_path: Path, part: str) -> None:
    image_folder(tmp_path / "train", (5, 6, 7))
    image_folder(tmp_path / part, (1, 2, 3), seed=1)
    data = decoded(f"imagefolder:{tmp_path}")
    assert data.classes == tuple(COLOURS)
    assert np.bincount(data.train_labels).tolist() == [5, 6, 7]
    assert np.bincount(data.test_labels).tolist() == [1, 2, 3]


def test_a_folder_without_parts_is_split_by_a_seed(tmp_path: Path) -> None:
    image_folder(tmp_path, (10, 20, 30))
    data = decoded(f"imagefolder:{tmp_path}", test_fraction=0.3)
    assert np.bincount(data.test_labels).tolist() == [3, 6, 9]
    assert np.bincount(data.train_labels).tolist() == [7, 14, 21]


def test_a_part_has_as_many_training_images_of_each_class_and_every_test_image() -> None:
    whole, part = decoded("digits"), decoded("digits", train_per_class=20)
    assert np.bincount(part.train_labels).tolist() == [20] * 10
    taken, all_of_them = (
        {(image.tobytes(), int(label)) for image, label in zip(data.train_images, data.train_labels, strict=True)}
        for data in (part, whole)
    )
    assert taken <= all_of_them
    assert np.array_equal(part.test_images, whole.test_images)


def test_a_part_is_a_matter_of_the_split_seed() -> None:
    one, same = (decoded("digits", train_per_class=20).train_images for _ in range(2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, decoded("digits", train_per_class=20, split_seed=1).train_images)


def test_a_part_of_more_images_than_a_class_has_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.train_per_class is 200, and the smallest class of digits has 139"):
        decoded("digits", train_per_class=200)


@pytest.mark.parametrize("train", ["", "train"])
def test_a_part_of_a_folder_has_the_colours_of_its_labels(tmp_path: Path, train: str) -> None:
    image_folder(tmp_path / train, (10, 20, 30))
    if train:
        image_folder(tmp_path / "test", (1, 2, 3))
    data = decoded(f"imagefolder:{tmp_path}", train_per_class=5)
    assert data.train_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.train_images.mean((1, 2)).argmax(1).tolist() == data.train_labels.tolist()


def test_the_pixels_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", (2, 2, 2))
    image_folder(tmp_path / "test", (2, 2, 2), seed=1)
    data = decoded(f"imagefolder:{tmp_path}")
    files = sorted((tmp_path / "test").rglob("*.png"))
    assert np.array_equal(data.test_images, np.stack([np.asarray(Image.open(file)) for file in files]))


def test_a_photo_on_its_side_is_turned_in_training_as_in_serving(tmp_path: Path) -> None:
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "test")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "test" / "ant" / "000.png", exif=exif)
    assert np.array_equal(decoded(f"imagefolder:{tmp_path}").test_images[0], upright)


def test_classes_that_differ_between_the_parts_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "test", (1, 1), names=("ant", "bee"))
    with pytest.raises(RecipeError, match="different class folders"):
        decoded(f"imagefolder:{tmp_path}")


def test_a_train_folder_alone_is_not_taken_for_a_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "train")
    with pytest.raises(RecipeError, match="one class"):
        load(DataConfig(name=f"imagefolder:{tmp_path}"), quiet=True)


def test_files_come_in_the_order_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for place in ("bee/deep", "bee/a", "ant"):
        image_folder(tmp_path / place, (2,), names=("x",))
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "bee" / "LOUD.PNG")
    listed, theirs = _listed(tmp_path), ImageFolder(str(tmp_path))
    assert (listed.samples, listed.targets, listed.classes) == (theirs.samples, theirs.targets, theirs.classes)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "wasp").mkdir()
    with pytest.raises(RecipeError, match="there is no image in wasp"):
        decoded(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("folder", ["nowhere", "empty", "flat"])
def test_a_folder_without_class_folders_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "photo.png")
    with pytest.raises(RecipeError, match=f"{folder} is no folder of class folders"):
        decoded(f"imagefolder:{tmp_path / folder}")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "cut"]
)
def test_a_broken_image_is_named(tmp_path: Path, content: bytes) -> None:
    image_folder(tmp_path)
    (tmp_path / "bee" / "003.png").write_bytes(content)
    with pytest.raises(RecipeError, match=r"cannot decode .*bee/003\.png"):
        decoded(f"imagefolder:{tmp_path}")


def test_half_an_image_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path, side=64)
    path = tmp_path / "bee" / "003.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RecipeError, match=r"cannot decode .*bee/003\.png"):
        decoded(f"imagefolder:{tmp_path}")


def test_an_image_too_narrow_to_crop_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    Image.new("RGB", (1, 500)).save(tmp_path / "cow" / "002.png")
    with pytest.raises(RecipeError, match=r"cow/002\.png: .*too narrow"):
        decoded(f"imagefolder:{tmp_path}", resize="short_side", resize_to=8)


@pytest.mark.parametrize("name", ["mnist", "imagefolder", "imagefolder:", "", "digits:"])
def test_an_unknown_data_set_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(RecipeError, match="there are digits, cifar10, cifar100, fashion_mnist, imagefolder:PATH"):
        decoded(name)


def test_a_set_too_large_for_memory_is_mapped_from_a_file_that_leaves_no_trace(tmp_path: Path) -> None:
    rule = Preprocess(size=1024, mean=(0, 0, 0), std=(1, 1, 1))
    count = IN_MEMORY_BYTES // (3 * 1024**2) + 1

    def two() -> Iterator[Image.Image]:
        yield Image.new("RGB", (4, 4), (1, 2, 3))
        yield Image.new("RGB", (4, 4), (4, 5, 6))

    out = Decoder(rule, QUIET).stack(two(), count, tmp_path)
    assert out.shape == (count, 1024, 1024, 3)
    assert out[:3, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]
    assert not list(tmp_path.iterdir())


def test_a_set_too_large_for_memory_needs_a_folder_to_write_to(tmp_path: Path) -> None:
    rule = Preprocess(size=1024, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(RecipeError, match="cannot put 9999 decoded images into"):
        Decoder(rule, QUIET).stack([], 9999, tmp_path / "nowhere")


def cifar_files(root: Path, dataset: type[torchvision.datasets.CIFAR10], label: str, classes: int) -> None:
    """What torchvision keeps on disk: pickled rows of 3072 bytes, channel by channel."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    for place, (name, _) in enumerate([*dataset.train_list, *dataset.test_list]):
        rows = np.full((4, 3072), place, np.uint8)
        rows[:, 1024:2048] = 100 + place
        batch = {"data": rows, label: [row % classes for row in range(place, place + 4)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class {number}" for number in range(classes)]
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: names}))


@pytest.mark.parametrize(
    ("name", "dataset", "label", "classes", "batches"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels", 10, 5),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels", 100, 1),
    ],
)
def test_torchvisions_cifar_files_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
    name: str,
    dataset: type[torchvision.datasets.CIFAR10],
    label: str,
    classes: int,
    batches: int,
) -> None:
    cifar_files(tmp_path / name, dataset, label, classes)
    monkeypatch.setattr(dataset, "train_list", [[file, None] for file, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [[file, None] for file, _ in dataset.test_list])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": None})
    data = decoded(name, root=str(tmp_path), size=32)
    assert data.train_images.shape == (4 * batches, 32, 32, 3)
    for place in range(batches):
        rows = data.train_images[4 * place : 4 * place + 4].reshape(-1, 3)
        assert (rows == [place, 100 + place, place]).all()
    assert data.test_images[0, 0, 0].tolist() == [batches, 100 + batches, batches]
    assert data.test_labels.tolist() == [batches, batches + 1, batches + 2, batches + 3]
    assert len(data.classes) == classes


def test_torchvisions_fashion_mnist_files_are_read(tmp_path: Path, no_network: None) -> None:
    raw = tmp_path / "fashion_mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 5), ("t10k", 3)):
        images, labels = np.arange(count, dtype=np.uint8).repeat(784), np.arange(count, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    data = decoded("fashion_mnist", root=str(tmp_path))
    assert data.train_images.shape == (5, 8, 8, 3)
    assert data.train_images[:, 0, 0].tolist() == [[place] * 3 for place in range(5)]
    assert data.test_labels.tolist() == [0, 1, 2]
    assert len(data.classes) == 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_a_download_that_fails_says_where_to_put_the_files(tmp_path: Path, no_network: None, name: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)cannot download {name} to {tmp_path}.*by hand"):
        decoded(name, root=str(tmp_path))


@pytest.mark.skipif(not (CIFAR10 / "test").is_dir(), reason=f"needs CIFAR-10 as an image folder in {CIFAR10}")
def test_real_cifar_images_are_untouched_and_look_like_cifar(tmp_path: Path) -> None:
    for part, count in (("train", 40), ("test", 5)):
        for folder in (CIFAR10 / part).iterdir():
            (tmp_path / part / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                (tmp_path / part / folder.name / file.name).symlink_to(file)
    data = load(DataConfig(name=f"imagefolder:{tmp_path}"), quiet=True)
    first = sorted((tmp_path / "test").rglob("*.*"))[0]
    assert np.array_equal(data.test.images[0].numpy(), np.asarray(Image.open(first).convert("RGB")))
    assert data.preprocess.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.05)
    assert data.preprocess.std == pytest.approx((0.247, 0.243, 0.262), abs=0.03)


def test_the_digest_of_a_folder_changes_with_its_training_images_and_not_with_its_place(tmp_path: Path) -> None:
    for name in ("one", "other"):
        image_folder(tmp_path / name / "train")
        image_folder(tmp_path / name / "test", (2, 2, 2))
    one, other = (DataConfig(name=f"imagefolder:{tmp_path / name}") for name in ("one", "other"))
    before = files_digest(one)
    assert before == files_digest(other)
    image_folder(tmp_path / "one" / "test", (3, 3, 3), seed=5)
    assert files_digest(one) == before
    (tmp_path / "one" / "train" / "ant" / "000.png").rename(tmp_path / "one" / "train" / "bee" / "999.png")
    (tmp_path / "other" / "train" / "ant" / "000.png").write_bytes(b"another length")
    assert len({before, files_digest(one), files_digest(other)}) == 3


def test_images_that_are_not_kept_apart_are_all_in_the_digest(tmp_path: Path) -> None:
    config = DataConfig(name=f"imagefolder:{image_folder(tmp_path)}")
    before = files_digest(config)
    (tmp_path / "cow" / "005.png").unlink()
    assert before != files_digest(config)


def test_a_data_set_with_a_name_needs_no_digest() -> None:
    assert files_digest(DataConfig(name="digits")) is None
