"""Splits, batches and augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cascade.manifest import Preprocess
from cascade.pixels import normalise
from training.data import Batches, Data, Split, crop_flip, load
from training.settings import Augment, DataConfig
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


def slow_crop_flip(pixels: Tensor, offsets: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """Pad with black, cut a window out, mirror it: one image at a time."""
    side = pixels.shape[1]
    result = []
    for image, down, right, mirror in zip(pixels.numpy(), *offsets.tolist(), mirrored.tolist(), strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        window = padded[pad + down : pad + down + side, pad + right : pad + right + side]
        result.append(torch.from_numpy((window[:, ::-1] if mirror else window).copy()))
    return torch.stack(result)


@given(st.integers(0, 9), st.integers(1, 7), st.integers(0, 2**32))
@settings(deadline=None)
def test_crop_and_flip_of_a_batch_are_those_of_each_image(pad: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = random_pixels(6, side, seed)
    offsets = torch.randint(-pad, pad + 1, (2, 6), generator=generator)
    mirrored = torch.randint(0, 2, (6,), generator=generator).bool()
    expected = slow_crop_flip(pixels, offsets, mirrored, pad)
    assert torch.equal(crop_flip(pixels, offsets, mirrored, side), expected)


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
