"""A new version and a new threshold every second under load: is every answer of one version and one threshold?

python benchmarks/changes.py bundles/cifar10 IMAGES [--seconds 60] [--clients 8]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.asker import Asker
from bench.errors import ClientError
from benchmarks.common import encoded, serving
from cascade import bundle
from cascade.bundle import Bundle
from cascade.pixels import normalise
from cascade.replay import replay
from cascade.rules import ExitRule, ThresholdRule
from server.images import read_image
from server.runtime import OnnxRuntime

KEY = "for this run alone"
OTHER = 0.9  # threshold of the second version
CHANGED = (0.5, 0.7, None)


def make_versions(source: Path, work: Path) -> dict[str, float]:
    """Write two versions that differ in their threshold; gives each one's own."""
    read = bundle.read(source)
    own = {"1": read.manifest.exit.threshold, "2": OTHER}
    for version, threshold in own.items():
        rule = ExitRule(definition=read.manifest.exit.definition, threshold=threshold, rule=ThresholdRule(name="fixed"))
        manifest = read.manifest.model_copy(update={"version": version, "exit": rule, "golden": None})
        plain = Bundle(manifest, read.models)
        bundle.write(work / version, plain.manifest, plain.files())
    return own


def right_answers(source: Path, images: list[bytes], thresholds: set[float]) -> dict[float, list[tuple[int, int]]]:
    """Class and stage of each image at each threshold, by the reference."""
    read = bundle.read(source)
    runtime = OnnxRuntime(read)
    rule = read.manifest.preprocess
    inputs = normalise(np.stack([read_image(image, rule, 10**8) for image in images]), rule)
    logits = [runtime.run(stage, inputs) for stage in range(len(read.manifest.stages))]
    found = {}
    for threshold in thresholds:
        answers = replay(logits, threshold, read.manifest.exit.definition)
        found[threshold] = list(zip(answers.classes.tolist(), answers.stages.tolist(), strict=True))
    return found


async def ask(
    asker: Asker, images: list[bytes], until: float, own: dict[str, float], right: object, seen: Counter[str]
) -> None:
    """Ask without a pause, and judge every answer."""
    turn = 0
    while time.monotonic() < until:
        turn = (turn + 1) % len(images)
        try:
            answer = await asker.predict(images[turn], "image/jpeg")
        except ClientError as error:
            seen[f"failed: {error}"] += 1
            continue
        threshold = answer.threshold
        if threshold != own[answer.version] and threshold not in CHANGED:
            seen["a threshold of another version"] += 1
        elif (answer.best.index, answer.best.stage) != right[threshold][turn]:  # type: ignore[index]
            seen["another answer than the reference"] += 1
        else:
            seen[f"right, version {answer.version}"] += 1


async def change(url: str, name: str, work: Path, until: float, seen: Counter[str]) -> None:
    """Every second put the other version in the place of the one there is, and another threshold in force."""
    turn = 0
    async with httpx.AsyncClient(base_url=url, headers={"X-Admin-Key": KEY}, timeout=30) as client:
        while time.monotonic() < until:
            turn += 1
            shutil.rmtree(work / "served")
            shutil.copytree(work / "21"[turn % 2], work / "served")
            reloaded = await client.post("/admin/reload")
            value = CHANGED[turn % len(CHANGED)]
            patched = await client.patch(f"/admin/models/{name}", json={"threshold": value})
            seen[f"reload {reloaded.status_code}, change {patched.status_code}"] += 1
            await asyncio.sleep(1)


async def main() -> None:
    """Print what was seen, and how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    images = encoded(given.images, 256)
    name = bundle.read(given.bundle).manifest.name
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        own = make_versions(given.bundle, work)
        right = right_answers(given.bundle, images, {*own.values(), *(value for value in CHANGED if value is not None)})
        shutil.copytree(work / "1", work / "served")
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        with serving(work / "served", "--workers", "2", "--admin-key-sha256", digest) as (_, url):
            until = time.monotonic() + given.seconds
            async with Asker(url, connections=given.clients) as asker, asyncio.TaskGroup() as tasks:
                for _ in range(given.clients):
                    tasks.create_task(ask(asker, images, until, own, right, seen))
                tasks.create_task(change(url, name, work, until, seen))
    for what, count in sorted(seen.items()):
        print(f"{count:8d}  {what}")


if __name__ == "__main__":
    asyncio.run(main())
