"""Encoded bytes to pixels, from strangers: a short list of formats, and sizes checked before anything is decoded.

Pillow knows formats that start other programs (EPS, PDF) or that no camera writes; the list keeps them out. Whatever a
decoder raises over bytes it was not made for is the bytes' fault and answered as such.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cascade.errors import BadImage, CascadeError, TooLarge
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, to_pixels

# Imported by name: asked for a format it has not loaded, Pillow loads every decoder it has. A format it was built
# without is left out, since Pillow would stumble over its name.
DECODERS = (JpegImageFile, PngImageFile, WebPImageFile, GifImageFile, BmpImageFile, TiffImageFile, PpmImageFile)
FORMATS = tuple(decoder.format for decoder in DECODERS if decoder.format in Image.OPEN)


def read_image(data: bytes, rule: Preprocess, max_pixels: int, name: str = "image") -> Pixels:
    """Decode one image and preprocess it as training did.

    Args:
        data: an encoded image; of an animation the first frame counts.
        rule: the bundle's preprocessing.
        max_pixels: largest width times height.
        name: what to call it in an error.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: it cannot be decoded.
        TooLarge: it has too many pixels, by its own header.
    """
    if not data:
        raise BadImage(f"{name} is empty: send an encoded image")
    try:
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


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooLarge(
            f"{name} has {width} x {height} = {width * height} pixels, the limit is {max_pixels}: make it smaller first"
        )
