"""The client against a real server of a bundle that ships with the project, and as the README shows it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Drawing

import rescade
from bench.question import Image
from cascade import bundle
from cascade.bundle import Bundle
from cascade.pixels import normalise, to_pixels
from rescade import AsyncClient, Client, ClientError
from tests.serving import RESCADE, ROOT, served

SEEDS = range(6)


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return bundle.read(ROOT / "bundles" / "digits")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{seed}.png" for seed in SEEDS]
    for seed, path in zip(SEEDS, paths, strict=True):
        rough = np.random.default_rng(seed).integers(0, 256, (4, 4), np.uint8)
        Drawing.fromarray(rough).resize((40, 40), Drawing.Resampling.BICUBIC).save(path)
    return paths


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with served([*RESCADE, "serve", "bundles/digits", "--max-body-bytes", "1000000"], log) as url:
        yield url


def test_files_bytes_and_ready_inputs_have_one_answer(url: str, images: list[Path], digits: Bundle) -> None:
    rule = digits.manifest.preprocess
    inputs = normalise(np.stack([to_pixels(Drawing.open(path), rule) for path in images]), rule)
    with Client(url) as client:
        by_path = client.predict(images, logits=True)
        by_bytes = client.predict([path.read_bytes() for path in images], logits=True)
        by_inputs = client.predict(inputs, logits=True)
        one_by_one = [client.predict(path, logits=True).best for path in images]
    assert by_path.predictions == by_bytes.predictions == by_inputs.predictions
    assert [found.label for found in one_by_one] == [found.label for found in by_path.predictions]


def test_a_stream_has_the_same_answers(url: str, images: list[Path]) -> None:
    with Client(url) as client:
        together = client.predict(images, top_k=2, threshold=0.5).predictions
        stream = list(client.predict_many(images, batch_size=2, concurrency=2, top_k=2, threshold=0.5))
    assert [(found.index, found.stage) for found in stream] == [(found.index, found.stage) for found in together]
    assert [len(found.top) for found in stream] == [2] * len(images)


async def test_the_async_client_asks_many_at_once(url: str, images: list[Path], digits: Bundle) -> None:
    async with AsyncClient(url) as client:
        await client.wait_until_ready(10)
        answers = await asyncio.gather(*(client.predict(path, request_id=path.name) for path in images))
        shown = await client.bundle()
    assert [answer.request_id for answer in answers] == [path.name for path in images]
    assert (shown.name, shown.labels) == (digits.manifest.name, tuple(digits.manifest.labels))


@pytest.mark.parametrize(
    ("image", "code"),
    [(b"no image", "bad_image"), (bytes(2_000_000), "too_large"), (np.zeros((3, 7, 7), np.float32), "bad_shape")],
    ids=["bytes", "size", "shape"],
)
def test_a_refusal_is_typed(url: str, image: Image, code: str) -> None:
    with Client(url) as client, pytest.raises(ClientError) as caught:
        client.predict(image, request_id="r-1")
    assert isinstance(caught.value, rescade.Refused)
    assert (caught.value.code, caught.value.request_id) == (code, "r-1")


def test_the_readmes_example_runs(
    url: str, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## A client for Python\n", 1)[1]
    example = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    monkeypatch.chdir(images[0].parent)
    exec(example.replace("http://127.0.0.1:8000", url).replace("IMAGE.png", images[0].name), {})
    first, *stream, last = capsys.readouterr().out.splitlines()
    assert stream == [first.split()[0]] * 20
    assert last.startswith("HTTP 422: ")


def test_everything_the_front_door_names_can_be_imported() -> None:
    assert [name for name in rescade.__all__ if not hasattr(rescade, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'Painter'"):
        _ = rescade.Painter
