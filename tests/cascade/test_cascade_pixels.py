"""From images of any kind to a network's input, by numbers worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cascade.errors import BadImage
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, normalise, scale_and_shift, to_grid, to_pixels, to_rgb
from tests.builders import random_photo

UNIT: dict[str, tuple[float, float, float]] = {"mean": (0, 0, 0), "std": (1, 1, 1)}
RED, WHITE = (255, 0, 0), (255, 255, 255)
MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
DEEP = ["I;16", "I;16L", "I;16B", "I;16N"]


def stretch(size: int = 8) -> Preprocess:
    return Preprocess(size=size, **UNIT)


def short_side(size: int, length: int) -> Preprocess:
    return Preprocess(size=size, resize="short_side", resize_to=length, crop="center", **UNIT)


def seen(image: Image.Image) -> tuple[int, ...]:
    """The colour at the top left of a one-colour image, as a network sees it."""
    return tuple(to_pixels(image, stretch())[:, 0, 0].tolist())


def reread(image: Image.Image, kind: str = "PNG", exif: Image.Exif | None = None) -> Image.Image:
    """The image after a trip through a file."""
    file = io.BytesIO()
    image.save(file, kind, **({} if exif is None else {"exif": exif}))
    return Image.open(file)


def as_seen_upright(pixels: NDArray[np.uint8], size: int) -> Pixels:
    return to_pixels(Image.fromarray(pixels), stretch(size))


def test_an_image_of_the_right_size_is_untouched_bit_for_bit() -> None:
    image = random_photo(width=32, height=32)
    assert np.array_equal(to_pixels(image, stretch(32)), np.asarray(image).transpose(2, 0, 1))
    assert np.array_equal(to_pixels(image, short_side(32, 32)), np.asarray(image).transpose(2, 0, 1))


def test_pixels_are_channels_first_in_one_piece() -> None:
    pixels = to_pixels(random_photo(), stretch())
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("mode", [*MODES, *DEEP])
def test_every_mode_that_pillow_knows_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (9, 7))).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_is_white(mode: str) -> None:
    assert seen(Image.new(mode, (9, 7))) == WHITE


def test_half_transparent_red_is_laid_on_white() -> None:
    assert seen(Image.new("RGBA", (9, 7), (255, 0, 0, 128))) == (255, 127, 127)


def test_grey_with_alpha_is_laid_on_white() -> None:
    assert seen(Image.new("LA", (9, 7), (0, 128))) == (127, 127, 127)


def test_an_opaque_image_with_alpha_keeps_its_colours() -> None:
    assert seen(Image.new("RGBA", (9, 7), (10, 20, 30, 255))) == (10, 20, 30)


def test_a_palette_gives_its_colours() -> None:
    assert seen(reread(Image.new("RGB", (9, 7), RED).quantize(4))) == RED


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (9, 7))
    image.putpalette([255, 0, 0])
    image.info["transparency"] = 0
    assert seen(reread(image)) == WHITE


@pytest.mark.parametrize(("mode", "colour"), [("RGB", RED), ("L", 90), ("1", 1)])
def test_a_colour_that_stands_for_transparency_is_white(mode: str, colour: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (9, 7), colour)
    image.info["transparency"] = colour if mode != "1" else 255
    assert seen(reread(image)) == WHITE


def test_grey_is_the_same_in_every_channel() -> None:
    assert seen(Image.new("L", (9, 7), 77)) == (77, 77, 77)


def test_cmyk_is_ink_on_white() -> None:
    assert seen(Image.new("CMYK", (9, 7), (0, 255, 255, 0))) == RED
    assert seen(Image.new("CMYK", (9, 7), (0, 0, 0, 0))) == WHITE


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_upper_byte(order: str) -> None:
    deep = np.full((7, 9), 0x1234, order)
    image = Image.frombuffer("I;16" if order == "<u2" else "I;16B", (9, 7), deep.tobytes(), "raw")
    assert seen(image) == (0x12,) * 3


def test_a_16_bit_png_keeps_its_upper_byte() -> None:
    image = reread(Image.fromarray(np.full((7, 9), 0xFEDC, np.uint16)))
    assert seen(image) == (0xFE,) * 3


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        ([[0, 65535], [256, 511]], [[0, 255], [1, 1]]),
        ([[0, 255], [7, 90]], [[0, 255], [7, 90]]),
        ([[-5, 255], [0, 1]], [[0, 255], [0, 1]]),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    ],
    ids=["16 bit", "8 bit", "negative", "black"],
)
def test_32_bit_grey_is_scaled_by_what_it_holds(values: list[list[int]], grey: list[list[int]]) -> None:
    image = Image.fromarray(np.array(values, np.int32))
    assert np.asarray(to_rgb(image))[:, :, 0].tolist() == grey


def test_float_grey_up_to_one_is_scaled_to_8_bits() -> None:
    image = Image.fromarray(np.array([[0.0, 1.0], [0.5, -0.5]], np.float32))
    assert np.asarray(to_rgb(image))[:, :, 0].tolist() == [[0, 255], [127, 0]]


def test_a_float_grey_that_is_no_number_is_black() -> None:
    image = Image.fromarray(np.array([[np.nan, np.inf], [-np.inf, 200.0]], np.float32))
    assert np.asarray(to_rgb(image))[:, :, 0].tolist() == [[0, 0], [0, 200]]


STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_is_turned_upright_as_its_exif_says(orientation: int) -> None:
    upright = np.asarray(random_photo(width=8, height=8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reread(Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))), exif=exif)
    assert np.array_equal(to_pixels(image, stretch(8)), upright.transpose(2, 0, 1))


def test_a_photo_on_its_side_is_cropped_after_it_was_turned() -> None:
    upright = np.asarray(random_photo(width=20, height=8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = reread(Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))), exif=exif)
    assert np.array_equal(to_pixels(image, short_side(8, 8)), upright[:, 6:14].transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3000, 2)])
def test_a_stretch_takes_images_of_any_shape(width: int, height: int) -> None:
    assert seen(Image.new("RGB", (width, height), RED)) == RED


def test_one_pixel_can_be_enlarged_and_cropped() -> None:
    assert (to_pixels(Image.new("RGB", (1, 1), RED), short_side(8, 16))[0] == 255).all()


@pytest.mark.parametrize(("width", "height"), [(1, 101), (101, 1), (2, 201)])
def test_an_image_too_narrow_to_crop_is_refused(width: int, height: int) -> None:
    with pytest.raises(BadImage, match="too narrow"):
        to_pixels(Image.new("RGB", (width, height)), short_side(8, 8))


@pytest.mark.parametrize(("width", "height"), [(1, 100), (100, 1)])
def test_an_image_just_wide_enough_is_cropped(width: int, height: int) -> None:
    assert to_pixels(Image.new("RGB", (width, height)), short_side(8, 8)).shape == (3, 8, 8)


@pytest.mark.parametrize("rule", [stretch(), short_side(8, 8)])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_area_is_refused(rule: Preprocess, size: tuple[int, int]) -> None:
    with pytest.raises(BadImage, match="no area"):
        to_pixels(Image.new("RGB", size), rule)


def test_the_crop_is_the_middle_of_the_resized_image() -> None:
    image = random_photo(width=40, height=24)
    resized = image.resize((20, 12), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[2:10, 6:14].transpose(2, 0, 1)
    assert np.array_equal(to_pixels(image, short_side(8, 12)), expected)


def test_the_long_side_is_rounded_to_the_nearest_pixel() -> None:
    image = random_photo(width=24, height=10)
    resized = image.resize((22, 9), Image.Resampling.BILINEAR)  # 24 * 9 / 10 is 21.6
    expected = np.asarray(resized)[0:8, 7:15].transpose(2, 0, 1)
    assert np.array_equal(to_pixels(image, short_side(8, 9)), expected)


def test_a_short_side_of_the_right_length_is_not_resampled() -> None:
    image = random_photo(width=9, height=12)
    assert np.array_equal(to_pixels(image, short_side(8, 9)), np.asarray(image)[2:10, 0:8].transpose(2, 0, 1))


def test_a_stretch_fills_the_square_and_ignores_the_shape() -> None:
    image = random_photo(width=40, height=10)
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(to_pixels(image, stretch()), expected)


def test_the_interpolation_is_the_one_that_was_asked_for() -> None:
    image = random_photo(width=40, height=10)
    rule = Preprocess(size=8, interpolation="bicubic", **UNIT)
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(to_pixels(image, rule), expected)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 16), st.integers(0, 16))
@settings(deadline=None)
def test_every_image_that_is_not_too_narrow_fills_the_crop(width: int, height: int, size: int, more: int) -> None:
    pixels = to_pixels(Image.new("RGB", (width, height), WHITE), short_side(size, size + more))
    assert pixels.shape == (3, size, size)
    assert (pixels == 255).all()  # a crop that left the image would be black there


def test_each_channel_is_normalised_by_its_own_mean_and_std() -> None:
    rule = Preprocess(size=1, mean=(0.5, 0.4, 0.2), std=(0.25, 0.2, 0.5))
    pixels = np.array([255, 51, 102], np.uint8).reshape(1, 3, 1, 1)
    # (1 - 0.5) / 0.25, (0.2 - 0.4) / 0.2, (0.4 - 0.2) / 0.5
    assert normalise(pixels, rule).ravel() == pytest.approx([2.0, -1.0, 0.4], abs=1e-6)


def test_mean_and_std_are_not_each_other() -> None:
    rule = Preprocess(size=1, mean=(0.5, 0.4, 0.2), std=(0.25, 0.2, 0.5))
    swapped = rule.model_copy(update={"mean": rule.std, "std": rule.mean})
    black = np.zeros((1, 3, 1, 1), np.uint8)
    assert normalise(black, rule).ravel() == pytest.approx([-2.0, -2.0, -0.4])
    assert normalise(black, swapped).ravel() == pytest.approx([-0.5, -0.5, -2.5])


def test_all_256_values_are_normalised_as_the_formula_says() -> None:
    rule = Preprocess(size=16, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, 3, 16, 16))
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (rule.mean, rule.std))
    found = normalise(pixels, rule)
    assert found.dtype == np.float32
    assert np.abs(found - (pixels / 255 - mean) / std).max() < 1e-6


def test_images_may_come_as_a_list() -> None:
    rule = stretch()
    images = [to_pixels(random_photo(seed), rule) for seed in range(3)]
    assert np.array_equal(normalise(images, rule), normalise(np.stack(images), rule))


def test_normalising_leaves_the_pixels_as_they_are() -> None:
    pixels = to_pixels(random_photo(), stretch())[None]
    before = pixels.copy()
    normalise(pixels, stretch())
    assert np.array_equal(pixels, before)


def test_scale_and_shift_are_one_number_a_channel() -> None:
    scale, shift = scale_and_shift(Preprocess(size=1, mean=(0.5, 0.4, 0.2), std=(0.25, 0.2, 0.5)))
    assert scale.shape == shift.shape == (1, 3, 1, 1)
    assert scale.ravel() * 255 == pytest.approx([4.0, 5.0, 2.0])
    assert shift.ravel() == pytest.approx([-2.0, -2.0, -0.4])


def test_what_was_normalised_goes_back_to_its_pixels() -> None:
    rule = Preprocess(size=16, mean=(0.5, 0.4, 0.2), std=(0.25, 0.2, 0.5))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    assert np.array_equal(to_grid(normalise(pixels, rule), rule), pixels)


def test_what_no_pixel_gives_goes_to_the_nearest_that_does() -> None:
    rule = Preprocess(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rows = np.array([[-3.0, 0.5, 1.7], [0.3 / 255, 0.7 / 255, 254.6 / 255]], np.float32).reshape(2, 3, 1, 1)
    assert to_grid(rows, rule).reshape(2, 3).tolist() == [[0, 128, 255], [0, 1, 255]]
