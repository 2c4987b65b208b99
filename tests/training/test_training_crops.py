"""Random crops of a batch: what they take, and where it ends up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from training.crops import crop_flip, draw_boxes, resized_crop

pytestmark = pytest.mark.train

NO, YES = torch.tensor([False]), torch.tensor([True])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(count: int = 6, side: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, (count, side, side, 3), generator=generator(seed), dtype=torch.uint8)


def gradients(side: int = 32) -> Tensor:
    """One picture: red grows downwards, green to the right, blue along both."""
    down, right = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([7 * down, 5 * right, 3 * (down + right)], -1)[None].to(torch.uint8)


def box(top: int, left: int, height: int, width: int) -> Tensor:
    return torch.tensor([[top], [left], [height], [width]])


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
    pixels, drawn = random_pixels(6, side, seed), generator(seed)
    offsets = torch.randint(-pad, pad + 1, (2, 6), generator=drawn)
    mirrored = torch.randint(0, 2, (6,), generator=drawn).bool()
    expected = slow_crop_flip(pixels, offsets, mirrored, pad)
    assert torch.equal(crop_flip(pixels, offsets, mirrored, side), expected)


def test_a_part_of_two_pixels_is_stretched_over_four_by_quarters() -> None:
    picture = torch.tensor([9, 10, 50, 9]).expand(4, 4)[None, :, :, None].expand(1, 4, 4, 3).to(torch.uint8)
    part = resized_crop(picture, box(1, 1, 2, 2), NO, 4)
    assert part[0, 0, :, 0].tolist() == pytest.approx([10, 20, 40, 50], abs=1e-3)
    assert part[0, :, 1, 2].tolist() == pytest.approx([20] * 4, abs=1e-3)
    mirrored = resized_crop(picture, box(1, 1, 2, 2), YES, 4)
    assert mirrored[0, 2, :, 1].tolist() == pytest.approx([50, 40, 20, 10], abs=1e-3)


@pytest.mark.parametrize("where", [(0, 0, 32, 32), (3, 5, 11, 20), (0, 31, 1, 1), (20, 12, 12, 9)])
@pytest.mark.parametrize("size", [8, 24, 45])
def test_a_part_is_what_torchs_interpolate_makes_of_it(where: tuple[int, int, int, int], size: int) -> None:
    picture, (top, left, height, width) = gradients(), where
    cut = picture[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
    expected = functional.interpolate(cut, size=(size, size), mode="bilinear").permute(0, 2, 3, 1)
    assert torch.allclose(resized_crop(picture, box(*where), NO, size), expected, atol=0.02)
    assert torch.allclose(resized_crop(picture, box(*where), YES, size), expected.flip(2), atol=0.02)


def test_the_whole_of_a_picture_of_the_right_size_is_the_picture() -> None:
    pixels = random_pixels(3, 16)
    whole = draw_boxes(3, 16, (1, 1), generator())
    assert torch.allclose(resized_crop(pixels, whole, torch.zeros(3, dtype=torch.bool), 16), pixels.float(), atol=0.01)


def test_a_part_does_not_depend_on_what_else_is_in_the_batch() -> None:
    pixels, boxes = random_pixels(6, 20), draw_boxes(6, 20, (0.08, 1), generator())
    mirrored = torch.tensor([True, False] * 3)
    together = resized_crop(pixels, boxes, mirrored, 12)
    alone = [resized_crop(pixels[n : n + 1], boxes[:, n : n + 1], mirrored[n : n + 1], 12) for n in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_parts_have_the_shares_and_the_shapes_that_are_asked_for_and_lie_in_the_picture() -> None:
    top, left, height, width = draw_boxes(5000, 256, (0.08, 0.5), generator()).double()
    share, ratio = height * width / 256**2, width / height
    assert 0.079 < share.min() < 0.09
    assert 0.48 < share.max() < 0.505
    assert share.mean() == pytest.approx(0.29, abs=0.01)
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    assert min(top.min(), left.min()) == 0
    assert max((top + height).max(), (left + width).max()) == 256


def test_tall_parts_are_as_likely_as_wide_ones_and_lie_as_often_above_as_below() -> None:
    top, left, height, width = draw_boxes(5000, 256, (0.08, 1), generator()).double()
    assert float((height > width).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((top + height / 2).mean()) == pytest.approx(128, abs=2)
    assert float((left + width / 2).mean()) == pytest.approx(128, abs=2)


def test_where_no_draw_fits_the_whole_picture_is_taken() -> None:
    boxes = draw_boxes(200, 256, (1, 1), generator())
    assert torch.equal(boxes, torch.tensor([0, 0, 256, 256])[:, None].expand(4, 200))


def test_a_share_of_less_than_a_pixel_is_a_pixel() -> None:
    assert draw_boxes(50, 8, (1e-6, 1e-6), generator())[2:].unique().tolist() == [1]


def test_boxes_are_drawn_from_their_generator_alone() -> None:
    one, same, other = (draw_boxes(32, 64, (0.08, 1), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
