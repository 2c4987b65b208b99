"""A CIFAR-10 bundle on the 10,000 real test images, over HTTP: the label and exit of each are those of replay.

The bundle is bundles/cifar10, or the one that CIFAR10_BUNDLE names.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.asker import Asker
from cascade import bundle
from cascade.bundle import Bundle
from cascade.pixels import normalise, to_pixels
from cascade.replay import Replay, replay
from tests.serving import RESCADE, ROOT, served

pytestmark = pytest.mark.slow

BUNDLE = Path(os.environ.get("CIFAR10_BUNDLE", ROOT / "bundles" / "cifar10"))


@pytest.fixture(autouse=True)
def _bundle_is_there() -> None:
    if not BUNDLE.is_dir():
        pytest.skip(f"there is no bundle at {BUNDLE}")


def replayed(read: Bundle, images: list[Path]) -> Replay:
    rule = read.manifest.preprocess
    logits: list[list[NDArray[np.float32]]] = [[] for _ in read.models]
    sessions = [ort.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in read.models]
    for start in range(0, len(images), 250):
        batch = normalise(np.stack([to_pixels(Image.open(path), rule) for path in images[start : start + 250]]), rule)
        for part, session in zip(logits, sessions, strict=True):
            part.append(session.run(None, {"images": batch})[0])
    rows = [np.concatenate(part) for part in logits]
    return replay(rows, read.manifest.exit.threshold, read.manifest.exit.definition)


def test_every_test_image_gets_the_label_and_the_exit_of_replay(cifar10_images: list[Path], tmp_path: Path) -> None:
    read = bundle.read(BUNDLE)
    expected = replayed(read, cifar10_images)
    command = [*RESCADE, "serve", str(BUNDLE), "--workers", "2", "--log-level", "error"]
    with served(command, tmp_path / "log") as url:
        found = asyncio.run(ask_all(url, [path.read_bytes() for path in cifar10_images]))
    assert [label for label, _ in found] == [read.manifest.labels[place] for place in expected.classes]
    assert [stage for _, stage in found] == expected.stages.tolist()


def test_the_manifest_says_what_the_bundle_does_on_the_test_images(cifar10_images: list[Path]) -> None:
    read = bundle.read(BUNDLE)
    figures = read.manifest.test
    assert figures is not None
    found = replayed(read, cifar10_images)
    labels = np.array([read.manifest.labels.index(path.parent.name) for path in cifar10_images])
    assert found.accuracy(labels) == pytest.approx(figures.adaptive.accuracy, abs=2e-4)
    assert found.mean_cost(read.manifest.costs()) == pytest.approx(figures.adaptive.macs, rel=1e-3)


async def ask_all(url: str, bodies: list[bytes]) -> list[tuple[str, int]]:
    """Sixteen requests at a time, so that samples of many share batches."""
    found: list[tuple[str, int]] = [("", -1)] * len(bodies)
    places = iter(range(len(bodies)))

    async def work(asker: Asker) -> None:
        for place in places:
            best = (await asker.predict(bodies[place], "image/jpeg")).best
            found[place] = (best.label, best.stage)

    async with Asker(url, connections=16, timeout_s=60) as asker:
        await asyncio.gather(*(work(asker) for _ in range(16)))
    return found
