"""The bundles that ship with the project, behind the real application: the answers are those of replay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade import bundle
from cascade.pixels import normalise, to_pixels
from server.runtime import OnnxRuntime
from tests.builders import encoded
from tests.server.harness import check_predictions, expected, serving

FOLDERS = sorted(path.parent for path in Path(__file__).parents[2].glob("bundles/*/manifest.json"))
COUNT = 60


def drawing(seed: int) -> Image.Image:
    """A few soft strokes on a random ground, of a random size: nearer to a scan than noise is."""
    random = np.random.default_rng(seed)
    rough = random.integers(0, 256, (random.integers(3, 9), random.integers(3, 9), 3), np.uint8)
    width, height = random.integers(16, 80, 2)
    return Image.fromarray(rough).resize((int(width), int(height)), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
async def test_a_shipped_bundle_answers_as_replay_does_in_any_company(folder: Path) -> None:
    runtime = OnnxRuntime(bundle.read(folder))
    rule = runtime.manifest.preprocess
    images = [drawing(seed) for seed in range(COUNT)]
    inputs = normalise(np.stack([to_pixels(image, rule) for image in images]), rule)
    threshold = float(np.median(expected(runtime, inputs, 0).energies))  # so that half of these drawings go on
    wanted = expected(runtime, inputs, threshold)
    photos = [("image", ("drawing.png", encoded(image), "image/png")) for image in images]
    async with serving(runtime, threshold=threshold, max_batch=8) as client:
        together = await client.post("/predict", files=photos)
        alone = await asyncio.gather(*(client.post("/predict", files=[photo]) for photo in reversed(photos)))
    check_predictions(together.json()["predictions"], wanted)
    check_predictions([response.json()["predictions"][0] for response in reversed(alone)], wanted)
    assert set(wanted.stages) > {0}
