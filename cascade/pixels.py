"""From a decoded image to a stage's input: one implementation for training, export and serving.

Training decodes its data sets with `to_pixels` and the server decodes requests with it, so the two cannot drift apart;
`fit` is its second half, for pixels that something else has decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cascade.errors import BadImage
from cascade.manifest import Preprocess

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Pixels = NDArray[np.uint8]


def to_pixels(image: Image.Image, rule: Preprocess) -> Pixels:
    """Turn upright, make RGB, resize, crop.

    Args:
        image: a Pillow image of any size and mode: palette, grey, 16 bit, CMYK, with alpha, with an EXIF orientation.
        rule: the bundle's preprocessing.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: an image without area, or one whose short side would have to be stretched without bound.
    """
    return _planes(np.asarray(_resized(to_rgb(ImageOps.exif_transpose(image)), rule), np.uint8))


def fit(rgb: Pixels, rule: Preprocess) -> Pixels:
    """Resize and crop, as `to_pixels` does, what is decoded, upright and RGB already.

    Args:
        rgb: (H, W, 3) uint8.
        rule: the bundle's preprocessing.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: an image without area, or one whose short side would have to be stretched without bound.
    """
    if rule.resize == "stretch" and rgb.shape == (rule.size, rule.size, 3):
        return _planes(rgb)
    return _planes(np.asarray(_resized(Image.fromarray(rgb), rule), np.uint8))


def _planes(rgb: Pixels) -> Pixels:
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency is laid on white, and 16-bit or float greys are scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_wide_grey(np.asarray(image, np.float64))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _wide_grey(grey: NDArray[np.float64]) -> Pixels:
    """32-bit greys hold 16-bit data as a rule, and floats hold either [0, 1] or 8-bit values."""
    finite = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    top = float(finite.max(initial=0.0))
    scale = 255.0 if 0 < top <= 1 else 1.0 if top <= 255 else 1 / 256
    return (finite * scale).clip(0, 255).astype(np.uint8)


def _resized(image: Image.Image, rule: Preprocess) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise BadImage(f"the image has no area: {width} x {height} pixels")
    filter_ = FILTERS[rule.interpolation]
    if rule.resize == "stretch":
        target = (rule.size, rule.size)
        return image if image.size == target else image.resize(target, filter_)
    short = min(width, height)
    length = rule.resize_to or rule.size
    if max(width, height) / short > 100:
        raise BadImage(f"an image of {width} x {height} pixels is too narrow to crop a square from: crop it first")
    if short != length:
        width, height = (max(length, round(side * length / short)) for side in (width, height))
        image = image.resize((width, height), filter_)
    left, top = (width - rule.size) // 2, (height - rule.size) // 2
    return image.crop((left, top, left + rule.size, top + rule.size))


def normalise(pixels: Pixels | Sequence[Pixels], rule: Preprocess) -> NDArray[np.float32]:
    """Pixels to network input: `(pixels / 255 - mean) / std`, a channel at a time, as one multiply and one add.

    Args:
        pixels: (B, 3, H, W) uint8.
        rule: the bundle's preprocessing.

    Returns:
        (B, 3, H, W) float32.
    """
    scale, shift = scale_and_shift(rule)
    result: NDArray[np.float32] = np.asarray(pixels).astype(np.float32)
    result *= scale
    result += shift
    return result


def scale_and_shift(rule: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two (1, 3, 1, 1) float32 arrays of `normalise`: 1 / (255 std) and -mean / std."""
    return _scale_and_shift(rule.mean, rule.std)


def to_grid(images: NDArray[np.float32], rule: Preprocess) -> Pixels:
    """Network input to the nearest pixels: undoes `normalise`, exactly for what it gave; what lies outside saturates.

    Args:
        images: (B, 3, H, W) float32, normalised.
        rule: the bundle's preprocessing.

    Returns:
        (B, 3, H, W) uint8.
    """
    scale, shift = grid_scale_and_shift(rule)
    pixels: Pixels = np.clip(np.rint(images * scale + shift), 0, 255).astype(np.uint8)
    return pixels


def grid_scale_and_shift(rule: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two (1, 3, 1, 1) float32 arrays of `to_grid`: 255 std and 255 mean."""
    std, mean = (np.asarray(each, np.float64).reshape(1, 3, 1, 1) for each in (rule.std, rule.mean))
    return (255 * std).astype(np.float32), (255 * mean).astype(np.float32)


@functools.cache
def _scale_and_shift(
    means: tuple[float, float, float], stds: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean = np.asarray(means, np.float64).reshape(1, 3, 1, 1)
    std = np.asarray(stds, np.float64).reshape(1, 3, 1, 1)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
