"""What the graph of a stage is fed: pixels or normalised images, whichever of the two it takes; nobody else knows how.

Normalised images, fed to a graph that takes pixels and a `shift`, are that shift, over pixels of zeros: `0 * scale +
images` are the images, to the last bit. A graph that takes pixels alone was quantised on their grid: what is normalised
is rounded to it, as the graph would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.exits import Floats
from cascade.files import Input
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, normalise, to_grid


def feeds(images: Floats | Pixels, takes: Input, rule: Preprocess | None = None) -> dict[str, NDArray[Any]]:
    """Name the arrays that a graph is run with.

    Args:
        images: (B, 3, S, S), pixels as uint8 or normalised as float32.
        takes: the graph's input.
        rule: of the bundle; pixels are normalised by it where the graph does not, and what is normalised goes back to
            pixels where the graph takes nothing else. Without it images are passed on.

    Returns:
        Name -> array.
    """
    rows: Any = images
    if images.dtype == np.float32 and takes.shift is not None:
        return {takes.name: np.zeros(rows.shape, np.uint8), takes.shift: rows}
    if images.dtype != takes.dtype and rule is not None:
        rows = normalise(rows, rule) if takes.dtype == "float32" else to_grid(rows, rule)
    return {takes.name: rows}
