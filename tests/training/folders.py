"""Image folders of random images, a colour for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}


def image_folder(
    root: Path, counts: Sequence[int] = (6, 6, 6), side: int = 8, seed: int = 0, names: Sequence[str] = tuple(COLOURS)
) -> Path:
    """Write PNG files, `counts` of them a class."""
    random = np.random.default_rng(seed)
    for name, count in zip(names, counts, strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = random.integers(-40, 41, (side, side, 3))
            pixels = (np.array(COLOURS.get(name, (128, 128, 128))) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return root
