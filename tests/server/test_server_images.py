"""Images of every mode a photo can have come out as `cascade.pixels` says; everything else is the sender's fault."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cascade.errors import BadImage, TooLarge
from cascade.manifest import Preprocess
from cascade.pixels import to_pixels
from server.images import FORMATS, Glance, glance, read_image
from tests.builders import encoded, random_photo, tiny_bundle

RULE = tiny_bundle(1).manifest.preprocess


def with_orientation(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif.tobytes())


def sixteen_bit() -> bytes:
    grey = np.random.default_rng(1).integers(0, 2**16, (20, 30), np.uint16)
    return encoded(Image.fromarray(grey))


def half_clear(mode: str) -> Image.Image:
    image = random_photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


PHOTOS: dict[str, Callable[[], bytes]] = {
    "rgb": lambda: encoded(random_photo()),
    "jpeg": lambda: encoded(random_photo(), "JPEG"),
    "several pictures": lambda: encoded(random_photo(), "MPO", save_all=True, append_images=[random_photo(1)]),
    "webp": lambda: encoded(random_photo(), "WEBP"),
    "bmp": lambda: encoded(random_photo(), "BMP"),
    "tiff": lambda: encoded(random_photo(), "TIFF"),
    "ppm": lambda: encoded(random_photo(), "PPM"),
    "palette": lambda: encoded(random_photo().quantize(16)),
    "palette with a clear colour": lambda: encoded(random_photo().quantize(16), transparency=3),
    "grey": lambda: encoded(random_photo().convert("L")),
    "grey with alpha": lambda: encoded(half_clear("LA")),
    "alpha": lambda: encoded(half_clear("RGBA")),
    "one bit": lambda: encoded(random_photo().convert("1")),
    "16 bit": sixteen_bit,
    "float": lambda: encoded(random_photo().convert("F"), "TIFF"),
    "cmyk": lambda: encoded(random_photo().convert("CMYK"), "JPEG"),
    "turned by EXIF": lambda: with_orientation(random_photo()),
    "one pixel": lambda: encoded(random_photo(width=1, height=1)),
    "wide": lambda: encoded(random_photo(width=400, height=3)),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_every_mode_is_preprocessed_as_in_training(name: str) -> None:
    data = PHOTOS[name]()
    with Image.open(io.BytesIO(data)) as image:
        wanted = to_pixels(image, RULE)
    assert np.array_equal(read_image(data, RULE, 10_000), wanted)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [random_photo(seed).quantize(16) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(data, RULE, 10_000), read_image(encoded(frames[0], "GIF"), RULE, 10_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_file_is_a_bad_image(kind: str, share: float) -> None:
    data = encoded(random_photo(width=64, height=64), kind)
    with pytest.raises(BadImage, match="the photo"):
        read_image(data[: int(len(data) * share)], RULE, 10_000, "the photo")


@pytest.mark.parametrize("seed", range(60))
def test_bytes_that_were_changed_anywhere_are_decoded_or_refused(seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")[seed % 6]
    data = np.frombuffer(encoded(random_photo(), kind), np.uint8).copy()
    data[random.integers(0, len(data), 12)] = random.integers(0, 256, 12)
    with contextlib.suppress(BadImage, TooLarge):
        assert read_image(data.tobytes(), RULE, 10_000).shape == (3, 8, 8)


def test_empty_bytes_are_a_bad_image() -> None:
    with pytest.raises(BadImage, match="empty"):
        read_image(b"", RULE, 10)


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS\0\1", b"<svg/>"])
def test_formats_that_are_not_on_the_list_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match="JPEG, PNG"):
        read_image(data, RULE, 10_000)


def test_the_list_names_formats_that_pillow_has_and_none_that_starts_a_program() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert not {"EPS", "PDF", "PSD", "WMF"} & set(FORMATS)


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    data = encoded(random_photo(width=60, height=40))
    header = data[:60]  # the size is there, the pixels are not
    with pytest.raises(TooLarge, match="60 x 40 = 2400 pixels, the limit is 2399"):
        read_image(header, RULE, 2399)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    header = bytearray(encoded(random_photo()))
    header[16:24] = side.to_bytes(4, "big") * 2

    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(TooLarge, match="pixels"):
        read_image(bytes(header), RULE, 25_000_000)


def test_an_image_too_narrow_to_crop_is_refused_in_words() -> None:
    rule = RULE.model_copy(update={"resize": "short_side", "resize_to": 8, "crop": "center"})
    with pytest.raises(BadImage, match="too narrow"):
        read_image(encoded(random_photo(width=400, height=2)), rule, 10_000)


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return to_pixels(image, RULE)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [5, 75, 95, 100])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 8), (17, 40), (333, 200)])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(
    width: int, height: int, quality: int, subsampling: int, progressive: bool
) -> None:
    photo = random_photo(quality, (width + 3) // 4, (height + 3) // 4).resize((width, height))
    data = encoded(photo, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    assert np.array_equal(read_image(data, RULE, 10**6), by_pillow(data))


@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_jpeg_is_set_upright_as_pillow_does_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(random_photo(3, 30, 20), "JPEG", exif=exif)
    assert np.array_equal(read_image(data, RULE, 10**6), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_other_colour_spaces_have_the_pixels_that_pillow_gives_them(mode: str) -> None:
    options = {"keep_rgb": True} if mode == "RGB" else {}
    data = encoded(random_photo(4).convert(mode), "JPEG", **options)
    assert np.array_equal(read_image(data, RULE, 10**6), by_pillow(data))


@pytest.mark.slow
def test_ten_thousand_real_jpegs_have_the_pixels_that_pillow_gives_them(cifar10_images: list[Path]) -> None:
    rule = Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))
    for path in cifar10_images:
        with Image.open(path) as image:
            assert np.array_equal(read_image(path.read_bytes(), rule, 10**6), to_pixels(image, rule)), path


def test_only_a_jpegs_header_says_at_once_how_large_it_is() -> None:
    assert glance(encoded(random_photo(), "JPEG")) == Glance(17, 23, "YCbCr")
    assert Glance(17, 23, "YCbCr").pixels == 23 * 17
    assert glance(encoded(random_photo(), "PNG")) is None
    assert glance(b"\xff\xd8\xff nothing") is None
