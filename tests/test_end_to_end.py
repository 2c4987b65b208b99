"""Train, export, serve, ask: the README's commands as a newcomer would type them, and the same answers throughout."""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cascade import bundle
from cascade.pixels import normalise
from cascade.replay import Replay, replay
from tests import readme
from tests.serving import ROOT, environment, served

pytestmark = [pytest.mark.train, pytest.mark.slow]
pytest.importorskip("torch")

SHORTER = "--set schedule.epochs=2 --set teacher.schedule.epochs=2"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds that the commands touch."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bundles", "training", "docker"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def test_every_step_of_the_readme_runs_and_the_server_answers_as_replay_does(clone: Path) -> None:
    commands = readme.commands("Step by step")
    train, evaluate, export, verify, show, serve, curl, bench = commands
    for command in (f"{train} {SHORTER}", evaluate, export, verify, show):
        subprocess.run(shlex.split(command), cwd=clone, env=environment(), check=True, timeout=300)
    folder = clone / shlex.split(verify)[-1]
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(20)]
    image_folder = clone / "images"
    image_folder.mkdir()
    for number, image in enumerate(images):
        image.save(image_folder / f"{number}.png")
    with served(shlex.split(serve), clone / "server.log", clone) as url:
        answers = [ask(url, image)["predictions"][0] for image in images]
        port = url.rpartition(":")[2]
        for command in (curl, bench):
            line = command.replace("8000", port).replace("IMAGE.png", "images/0.png").replace("IMAGES", "images")
            subprocess.run(line, shell=True, cwd=clone, env=environment(), check=True, timeout=120)
    expected = replayed(folder, images)
    assert [answer["class"] for answer in answers] == expected.classes.tolist()
    assert [answer["stage"] for answer in answers] == expected.stages.tolist()


def ask(url: str, image: Image.Image) -> dict[str, list[dict[str, object]]]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    response = httpx.post(f"{url}/predict", content=buffer.getvalue(), headers={"Content-Type": "image/png"})
    answer: dict[str, list[dict[str, object]]] = response.raise_for_status().json()
    return answer


def replayed(folder: Path, images: list[Image.Image]) -> Replay:
    from cascade.pixels import to_pixels
    from export.session import sessions

    read = bundle.read(folder)
    rule = read.manifest.preprocess
    inputs = normalise(np.stack([to_pixels(image, rule) for image in images]), rule)
    logits = [session.in_batches(inputs, 7) for session in sessions(read.models)]
    return replay(logits, read.manifest.exit.threshold, read.manifest.exit.definition)
