"""Splits, batches and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from cascade.manifest import Preprocess
from cascade.pixels import normalise, to_pixels
from training.crops import draw_boxes, resized_crop
from training.data import Batches, Data, Split, load
from training.settings import Augment, DataConfig
from training.sources import decode
from training.splits import draw_dv, measure

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
RULE = Preprocess(size=8, mean=(0.5, 0.4, 0.2), std=(0.25, 0.2, 0.5))


def digits(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "digits", "size": 8, "dv_fraction": 0.2, **changes})


def pixels_of(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images[split.index]]


def random_pixels(count: int = 6, side: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def test_without_pad_and_flip_images_are_only_normalised() -> None:
    data = load(digits())
    index = data.train.index[:7]
    batch = Batches(RULE, CPU).augmented(data.train, index, Augment(pad=0, flip=False), torch.Generator())
    assert torch.equal(batch.images, Batches(RULE, CPU).normalise(data.train.images[index]))


def test_a_batch_carries_labels_and_indices_of_its_samples() -> None:
    data = load(digits(dv_exclude=True))
    index = data.train.index[torch.tensor([5, 3, 900])]
    batch = Batches(RULE, CPU).augmented(data.train, index, Augment(), torch.Generator().manual_seed(0))
    assert torch.equal(batch.index, index)
    assert torch.equal(batch.labels, data.train.labels[index])


def test_augmentation_is_drawn_from_its_generator_alone() -> None:
    data = load(digits())
    batches, index = Batches(RULE, CPU), data.train.index[:32]
    one, same, other = (
        batches.augmented(data.train, index, Augment(), torch.Generator().manual_seed(seed)).images
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("augment", "shifts", "mirrors"), [(Augment(pad=2, flip=False), 25, 1), (Augment(pad=1), 9, 2)]
)
def test_every_shift_and_both_directions_are_drawn(augment: Augment, shifts: int, mirrors: int) -> None:
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[0, 3, 3], image[0, 3, 4] = 100, 200
    split = Split(image, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    index = torch.zeros(2000, dtype=torch.int64)
    batch = Batches(RULE, CPU).augmented(split, index, augment, torch.Generator().manual_seed(0))
    assert len({image.numpy().tobytes() for image in batch.images}) == shifts * mirrors


RESIZED: dict[str, Any] = {"augment": {"area": [0.25, 1]}, "size": 16, "resize": "short_side", "resize_to": 21}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A train and a test part of noise, 40 x 31 and 31 x 40 pixels."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name, shape in (("tall", (40, 31, 3)), ("wide", (31, 40, 3))):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, shape).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def photographed(root: Path, **changes: Any) -> Data:
    return load(DataConfig.model_validate({"name": f"imagefolder:{root}", **RESIZED, **changes}), quiet=True)


@pytest.mark.parametrize("resize_to", [16, 20, 21])
def test_images_are_the_middle_of_what_is_cropped_and_what_a_server_sees(photographs: Path, resize_to: int) -> None:
    data = photographed(photographs, resize_to=resize_to)
    kept = 16 if data.train.pictures is None else data.train.pictures.shape[1]
    assert kept == 16 + (resize_to - 16) // 2 * 2
    for split, part, where in ((data.dv, "train", 0), (data.train, "train", 6), (data.test, "test", 2)):
        file = photographs / part / ("tall" if where == 0 else "wide") / "0.png"
        expected = to_pixels(Image.open(file), data.preprocess).transpose(1, 2, 0)
        assert np.array_equal(split.images[where].numpy(), expected)


def test_a_training_batch_has_resized_crops_of_the_larger_pictures(photographs: Path) -> None:
    data, index, seed = photographed(photographs), torch.tensor([3, 0, 7]), 5
    batches = Batches(data.preprocess, CPU)
    batch = batches.augmented(data.train, index, data.augment, torch.Generator().manual_seed(seed))
    generator, pictures = torch.Generator().manual_seed(seed), data.train.pictures
    assert pictures is not None
    boxes = draw_boxes(3, 20, (0.25, 1), generator)
    mirrored = torch.randint(0, 2, (3,), generator=generator).bool()
    expected = batches.normalise(resized_crop(pictures[index], boxes, mirrored, 16))
    assert torch.equal(batch.images, expected)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_resized_crops_are_mirrored_only_if_the_recipe_says_so() -> None:
    right = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    right[:, :, 4:] = 255
    split = Split(right, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    index = torch.zeros(64, dtype=torch.int64)
    for flip in (False, True):
        augment = Augment(area=(1, 1), flip=flip)
        images = Batches(RULE, CPU).augmented(split, index, augment, torch.Generator().manual_seed(0)).images
        brighter = images[..., 4:].mean((1, 2, 3)) > images[..., :4].mean((1, 2, 3))
        assert bool(brighter.all()) is not flip
        assert bool(brighter.any())


def test_a_mapped_part_is_cropped_like_one_in_memory(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory, index = photographed(photographs), torch.arange(6)
    monkeypatch.setattr("training.sources.IN_MEMORY_BYTES", 0)
    mapped = photographed(photographs)
    config = DataConfig.model_validate({"name": f"imagefolder:{photographs}", **RESIZED})
    assert isinstance(decode(config, config.kept(), Console(quiet=True)).train_images, np.memmap)
    assert mapped.preprocess == in_memory.preprocess
    one, other = (
        Batches(data.preprocess, CPU)
        .augmented(data.train, index, data.augment, torch.Generator().manual_seed(0))
        .images
        for data in (in_memory, mapped)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("resize_to", [16, 20])
def test_what_is_over_the_room_on_a_device_stays_where_it_is(photographs: Path, resize_to: int) -> None:
    split, elsewhere = photographed(photographs, resize_to=resize_to).train, torch.device("meta")
    size = 12 * resize_to**2 * 3
    assert split.to(elsewhere, room=size - 1) is split
    moved = split.to(elsewhere, room=size)
    assert {moved.images.device, moved.labels.device, moved.index.device} == {elsewhere}
    assert moved.images.shape == split.images.shape
    assert (moved.pictures is None) is (split.pictures is None)
    assert moved.images.untyped_storage().nbytes() == size


def test_plain_batches_give_every_sample_once_in_order() -> None:
    data = load(digits())
    batches = list(Batches(data.preprocess, CPU).plain(data.dv, 100))
    assert torch.equal(torch.cat([batch.index for batch in batches]), data.dv.index)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.dv.labels[data.dv.index])
    assert [len(batch.images) for batch in batches] == [100, 100, 88]


def test_training_normalises_to_the_bit_as_serving_does() -> None:
    pixels = random_pixels(4, 8)
    ours = Batches(RULE, CPU).normalise(pixels).numpy()
    assert np.array_equal(ours, normalise(pixels.permute(0, 3, 1, 2).numpy(), RULE))


def test_each_channel_is_normalised_by_its_own_mean_and_std() -> None:
    pixels = torch.tensor([255, 51, 102], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert Batches(RULE, CPU).normalise(pixels).ravel().tolist() == pytest.approx([2.0, -1.0, 0.4], abs=1e-6)


def test_normalising_leaves_the_stored_pixels_alone() -> None:
    data = load(digits())
    before = data.train.images.clone()
    list(Batches(data.preprocess, CPU).plain(data.train, 500))
    assert torch.equal(data.train.images, before)


def test_mean_and_std_are_measured_a_channel_over_the_given_samples() -> None:
    images = random_pixels(5000, 2).numpy()
    images[..., 1] //= 4
    index = np.arange(0, 5000, 2)
    part = images[index].reshape(-1, 3) / 255
    mean, std = measure(images, index)
    assert mean == pytest.approx(part.mean(axis=0), abs=1e-6)
    assert std == pytest.approx(part.std(axis=0), abs=1e-6)


def test_a_channel_that_never_changes_can_still_be_divided_by() -> None:
    images = np.full((3, 2, 2, 3), 7, np.uint8)
    assert min(measure(images, np.arange(3))[1]) > 0


def test_channels_are_measured_without_the_held_out_samples() -> None:
    data = load(digits(dv_exclude=True))
    part = data.train.images[data.train.index].numpy().reshape(-1, 3) / 255
    assert data.preprocess.mean == pytest.approx(part.mean(axis=0), abs=1e-6)
    assert data.preprocess.std == pytest.approx(part.std(axis=0), abs=1e-6)


def test_large_images_are_measured_as_small_ones_are() -> None:
    large = np.repeat(np.repeat(images := random_pixels(3, 4).numpy(), 300, axis=1), 300, axis=2)
    assert measure(large, np.arange(3)) == measure(images, np.arange(3))


def test_a_mean_and_std_that_are_given_are_used() -> None:
    rule = load(digits(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])).preprocess
    assert (rule.mean, rule.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("exclude", [False, True])
def test_no_test_image_is_in_train_or_dv(exclude: bool) -> None:
    data = load(digits(dv_exclude=exclude))
    seen = {*pixels_of(data.train), *pixels_of(data.dv)}
    assert not seen & set(pixels_of(data.test))
    assert len(pixels_of(data.test)) == len(set(pixels_of(data.test)))


def test_an_excluded_dv_shares_no_image_with_training() -> None:
    data = load(digits(dv_exclude=True))
    assert not set(pixels_of(data.train)) & set(pixels_of(data.dv))
    assert len(data.train) + len(data.dv) == len(data.train.labels)


def test_a_dv_that_is_not_excluded_is_a_part_of_training() -> None:
    data = load(digits(dv_exclude=False))
    assert set(pixels_of(data.dv)) < set(pixels_of(data.train))
    assert len(data.train) == len(data.train.labels)


def test_every_image_of_a_data_set_is_used_once() -> None:
    data = load(digits(dv_exclude=True))
    everything = [*pixels_of(data.train), *pixels_of(data.dv), *pixels_of(data.test)]
    assert len(everything) == len(set(everything)) == 1797


@pytest.mark.parametrize(
    ("samples", "fraction", "expected"), [(1000, 0.1, 100), (7, 0.1, 1), (3, 0.01, 1), (10, 0.25, 2)]
)
def test_dv_has_its_share_of_the_samples_and_is_never_empty(samples: int, fraction: float, expected: int) -> None:
    _, dv = draw_dv(samples, digits(dv_fraction=fraction))
    assert len(dv) == len(set(dv.tolist())) == expected


def test_dv_is_drawn_from_everywhere() -> None:
    _, dv = draw_dv(10_000, digits(dv_fraction=0.1))
    tenths = np.bincount(dv // 1000, minlength=10)
    assert tenths.min() > 60
    assert tenths.max() < 140


def test_dv_depends_on_the_split_seed_alone() -> None:
    one, same, other = (load(digits(split_seed=seed, augment={"pad": pad})) for seed, pad in ((0, 0), (0, 3), (1, 0)))
    assert torch.equal(one.dv.index, same.dv.index)
    assert not torch.equal(one.dv.index, other.dv.index)


def test_dv_is_the_same_with_and_without_exclusion() -> None:
    kept, excluded = (draw_dv(500, digits(dv_exclude=exclude))[1] for exclude in (False, True))
    assert kept.tolist() == excluded.tolist()


def test_a_fingerprint_tells_which_samples_a_split_has() -> None:
    one, same, other = (load(digits(split_seed=seed)).dv for seed in (0, 0, 1))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_a_fingerprint_depends_on_the_labels_too() -> None:
    split = load(digits()).dv
    relabelled = Split(split.images, (split.labels + 1) % 10, split.index)
    assert relabelled.fingerprint() != split.fingerprint()


def test_on_the_cpu_nothing_moves() -> None:
    data: Data = load(digits())
    assert data.to(CPU) is data
