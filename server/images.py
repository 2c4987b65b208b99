"""Encoded bytes to pixels, from strangers: a short list of formats, and sizes checked before anything is decoded.

Pillow knows formats that start other programs (EPS, PDF) or that no camera writes; the list keeps them out. Whatever a
decoder raises over bytes it was not made for is the bytes' fault and answered as such.

An ordinary JPEG, three channels of YCbCr, is decoded by simplejpeg: the same library underneath and the same pixels, in
a sixth of the time. Everything else is Pillow's, and so is every JPEG that simplejpeg has any doubt about, so that
there is one judge of what is whole and one wording of what is not.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cascade.errors import BadImage, CascadeError, TooLarge
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, fit, to_pixels

# Imported by name: asked for a format it has not loaded, Pillow loads every decoder it has. A format it was built
# without is left out, since Pillow would stumble over its name.
DECODERS = (JpegImageFile, PngImageFile, WebPImageFile, GifImageFile, BmpImageFile, TiffImageFile, PpmImageFile)
JPEG = b"\xff\xd8\xff"
EXIF, XMP = b"Exif\0", b"http://ns.adobe.com/xap/"  # where an orientation can stand
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FORMATS = tuple(decoder.format for decoder in DECODERS if decoder.format in Image.OPEN)


class Glance(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
        height, width: in pixels, before it is set upright.
        space: of its colours.
    """

    height: int
    width: int
    space: str

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width


def glance(data: bytes) -> Glance | None:
    """Read a JPEG's header: where there is one, decoding it costs little more than its pixels do.

    Returns:
        None if what it is cannot be said without Pillow.
    """
    if not data.startswith(JPEG):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return Glance(height, width, space)


def read_image(
    data: bytes, rule: Preprocess, max_pixels: int, name: str = "image", seen: Glance | None = None
) -> Pixels:
    """Decode one image and preprocess it as training did.

    Args:
        data: an encoded image; of an animation the first frame counts.
        rule: the bundle's preprocessing.
        max_pixels: largest width times height.
        name: what to call it in an error.
        seen: what `glance` gave, where that was asked before.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: it cannot be decoded.
        TooLarge: it has too many pixels, by its own header.
    """
    if not data:
        raise BadImage(f"{name} is empty: send an encoded image")
    try:
        if (rgb := _plain_jpeg(data, max_pixels, seen or glance(data))) is not None:
            return fit(rgb, rule)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels, name)
            return to_pixels(image, rule)
    except CascadeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"{name} has more than {max_pixels} pixels: make it smaller first") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"{name} is no image of a known format: send one of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise BadImage(f"{name} cannot be decoded, is it whole? {type(error).__name__}: {str(error)[:200]}") from error


def _plain_jpeg(data: bytes, max_pixels: int, seen: Glance | None) -> Pixels | None:
    """Decode a JPEG that is nothing out of the ordinary; None leaves it, and what is wrong with it, to Pillow.

    Returns:
        (H, W, 3) uint8, upright.
    """
    if seen is None or seen.space != "YCbCr" or seen.pixels > max_pixels:
        return None
    try:
        start = data[:65536]
        turn = _turn(data) if EXIF in start or XMP in start else None
        rgb: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except Exception:
        return None
    return rgb if turn is None else np.asarray(Image.fromarray(rgb).transpose(turn))


def _turn(data: bytes) -> Image.Transpose | None:
    """What has to be done to a JPEG to set it upright."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooLarge(
            f"{name} has {width} x {height} = {width * height} pixels, the limit is {max_pixels}: make it smaller first"
        )
