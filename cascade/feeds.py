"""What the graph of a stage is fed: pixels or normalised images, whichever of the two it takes; nobody else knows how.

Normalised images, fed to a graph that takes pixels, are its `shift`, over pixels of zeros: `0 * scale + images` are the
images, to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.exits import Floats
from cascade.manifest import Preprocess
from cascade.pixels import Pixels, normalise


def feeds(
    images: Floats | Pixels, name: str, shift: str | None = None, rule: Preprocess | None = None
) -> dict[str, NDArray[Any]]:
    """Name the arrays that a graph is run with.

    Args:
        images: (B, 3, S, S), pixels as uint8 or normalised as float32.
        name: of the graph's input.
        shift: of a graph that takes pixels, the name of its `shift`; None for a graph that takes normalised images.
        rule: of the bundle; pixels are normalised by it here where the graph does not. Without it they are passed on.

    Returns:
        Name -> array.
    """
    rows: Any = images
    if images.dtype == np.uint8:
        if shift is not None:
            return {name: images}
        rows = images if rule is None else normalise(rows, rule)
    return {name: rows} if shift is None else {name: np.zeros(rows.shape, np.uint8), shift: rows}
