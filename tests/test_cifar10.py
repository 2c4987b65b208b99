"""CIFAR-10 bundles on the 10,000 real test images, by every protocol and in one file: what replay says of each.

The bundles are bundles/cifar10 and bundles/cifar10-int8, or the one that CIFAR10_BUNDLE names.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import itertools
import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image

from cascade import bundle
from cascade.bundle import Bundle
from cascade.feeds import feeds
from cascade.pixels import normalise, to_pixels
from cascade.replay import Replay, replay
from tests.serving import RESCADE, ROOT, free_port, served

pytestmark = pytest.mark.slow

SHIPPED = [ROOT / "bundles" / name for name in ("cifar10", "cifar10-int8")]
BUNDLES = [Path(os.environ["CIFAR10_BUNDLE"])] if "CIFAR10_BUNDLE" in os.environ else SHIPPED
LARGEST = 32
HEADER = "Inference-Header-Content-Length"

Found = list[tuple[str, int]]
Ask = Callable[[Any, str, list[bytes]], Awaitable[Found]]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    if not path.is_dir():
        pytest.skip(f"there is no bundle at {path}")
    return path


@pytest.fixture(scope="module")
def read(folder: Path) -> Bundle:
    return bundle.read(folder)


@pytest.fixture(scope="module")
def expected(read: Bundle, cifar10_images: list[Path]) -> Replay:
    """The cascade over all images, 250 at a time, with nothing of the server."""
    rule = read.manifest.preprocess
    logits: list[list[NDArray[np.float32]]] = [[] for _ in read.models]
    sessions = [ort.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in read.models]
    for start in range(0, len(cifar10_images), 250):
        paths = cifar10_images[start : start + 250]
        batch = normalise(np.stack([to_pixels(Image.open(path), rule) for path in paths]), rule)
        for part, session, stage in zip(logits, sessions, read.manifest.stages, strict=True):
            part.append(session.run(None, feeds(batch, stage.input, rule))[0])
    rows = [np.concatenate(part) for part in logits]
    return replay(rows, read.manifest.exit.threshold, read.manifest.exit.definition)


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def url(folder: Path, grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    also = ["--grpc-port", str(grpc_port)] if importlib.util.find_spec("grpc") else []
    command = [*RESCADE, "serve", str(folder), "--workers", "2", "--log-level", "error", *also]
    with served(command, tmp_path_factory.mktemp("log") / "log") as address:
        yield address


async def by_predict(client: httpx.AsyncClient, model: str, images: list[bytes]) -> Found:
    """One image raw, several as a form."""
    if len(images) == 1:
        response = await client.post("/predict", content=images[0], headers={"Content-Type": "image/jpeg"})
    else:
        response = await client.post("/predict", files=[("image", ("a.jpg", image, "image/jpeg")) for image in images])
    return [(each["label"], each["stage"]) for each in response.raise_for_status().json()["predictions"]]


async def by_oip_json(client: httpx.AsyncClient, model: str, images: list[bytes]) -> Found:
    """Tensors in JSON, in and out."""
    texts = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": texts}
    response = await client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    outputs = {output["name"]: output["data"] for output in response.raise_for_status().json()["outputs"]}
    return list(zip(outputs["label"], outputs["exit_stage"], strict=True))


async def by_oip_binary(client: httpx.AsyncClient, model: str, images: list[bytes]) -> Found:
    """Tensors in binary, in and out."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [len(images)]}
    asked = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}
    head = orjson.dumps({**asked, "parameters": {"binary_data_output": True}})
    response = await client.post(f"/v2/models/{model}/infer", content=head + data, headers={HEADER: str(len(head))})
    body = response.raise_for_status().content
    at = int(response.headers[HEADER])
    parts = {}
    for output in orjson.loads(body[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        parts[output["name"]], at = body[at : at + size], at + size
    return list(zip(texts_of(parts["label"]), np.frombuffer(parts["exit_stage"], "<i4").tolist(), strict=True))


def texts_of(data: bytes) -> list[str]:
    """Strings, each after its length."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return found


async def by_grpc(client: Any, model: str, images: list[bytes]) -> Found:
    """Tensors over gRPC."""
    triton = pytest.importorskip("tritonclient.grpc.aio")
    tensor = triton.InferInput("image", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, object))
    result = await client.infer(model, [tensor])
    labels = [label.decode() for label in result.as_numpy("label")]
    return list(zip(labels, result.as_numpy("exit_stage").tolist(), strict=True))


async def ask_all(connect: Callable[[], Any], ask: Ask, model: str, bodies: list[bytes]) -> Found:
    """Sixteen clients at a time, of one image or of many, so that samples of many share batches."""
    random, cuts = np.random.default_rng(0), [0]
    while cuts[-1] < len(bodies):
        cuts.append(min(len(bodies), cuts[-1] + int(random.integers(1, LARGEST + 1))))
    groups = itertools.pairwise(cuts)
    found: Found = [("", -1)] * len(bodies)

    async def work() -> None:
        async with connect() as client:
            for start, end in groups:
                found[start:end] = await ask(client, model, bodies[start:end])

    await asyncio.gather(*(work() for _ in range(16)))
    return found


@pytest.mark.parametrize("ask", [by_predict, by_oip_json, by_oip_binary, by_grpc])
def test_every_test_image_gets_the_label_and_the_exit_of_replay(
    ask: Ask, read: Bundle, expected: Replay, cifar10_images: list[Path], url: str, grpc_port: int
) -> None:
    def connect() -> Any:
        if ask is not by_grpc:
            return httpx.AsyncClient(base_url=url, timeout=60)
        triton = pytest.importorskip("tritonclient.grpc.aio", reason="needs the extra `clients`")
        return triton.InferenceServerClient(f"127.0.0.1:{grpc_port}")

    bodies = [path.read_bytes() for path in cifar10_images]
    found = asyncio.run(ask_all(connect, ask, read.manifest.name, bodies))
    assert [label for label, _ in found] == [read.manifest.labels[place] for place in expected.classes]
    assert [stage for _, stage in found] == expected.stages.tolist()


@pytest.mark.parametrize("pixels", [False, True])
def test_one_file_answers_every_test_image_to_the_last_bit_as_replay_and_the_stages_do(
    read: Bundle, expected: Replay, cifar10_images: list[Path], *, pixels: bool
) -> None:
    pytest.importorskip("onnx")
    from export.onefile import fused_bundle
    from export.session import sessions
    from export.staged import staged
    from export.whole import Whole

    rule, leave = read.manifest.preprocess, read.manifest.exit
    made = fused_bundle(read, pixels=pixels)
    assert made.fused is not None
    whole, stages = Whole(made.fused), sessions(read.models, rule)
    for start in range(0, len(cifar10_images), 64):
        raw = np.stack([to_pixels(Image.open(path), rule) for path in cifar10_images[start : start + 64]])
        inputs = normalise(raw, rule)
        fused = whole.run(np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if pixels else inputs, leave.threshold)
        one_by_one = staged(stages, inputs, leave.threshold, leave.definition)
        for name in ("logits", "classes", "stages", "energies"):
            found = getattr(fused, name)
            assert np.array_equal(found, getattr(one_by_one, name))
            assert np.array_equal(found, getattr(expected, name)[start : start + 64])


def test_the_manifest_says_what_the_bundle_does_on_the_test_images(
    read: Bundle, expected: Replay, cifar10_images: list[Path]
) -> None:
    figures = read.manifest.test
    assert figures is not None
    labels = np.array([read.manifest.labels.index(path.parent.name) for path in cifar10_images])
    assert expected.accuracy(labels) == pytest.approx(figures.adaptive.accuracy, abs=2e-4)
    assert expected.mean_cost(read.manifest.costs()) == pytest.approx(figures.adaptive.macs, rel=1e-3)
