"""The Open Inference Protocol over the real engine: the same answers as `/predict`, and counts that add up."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cascade.exits import Floats
from cascade.pixels import normalise
from server.app import create_app
from server.protocol import version_of
from server.runtime import OnnxRuntime
from server.settings import ServerSettings
from tests.builders import FakeRuntime, encoded, random_inputs, random_photo, tiny_bundle, write_tiny_bundle
from tests.server.harness import client_of, expected, serving

RUNTIME = OnnxRuntime(tiny_bundle())
URL = "/v2/models/tiny/infer"
BINARY = "Inference-Header-Content-Length"


def asked(data: list[Any], datatype: str, *shape: int, **parameters: Any) -> dict[str, Any]:
    """A request in JSON."""
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def outputs(response: httpx.Response) -> dict[str, list[Any]]:
    """Of a response in JSON, by name."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def check(found: dict[str, list[Any]], inputs: Floats, threshold: float | None = None) -> None:
    """Against the reference, exactly."""
    wanted = expected(RUNTIME, inputs, threshold)
    assert found["label"] == [f"class {index}" for index in wanted.classes]
    assert found["exit_stage"] == wanted.stages.tolist()
    assert found["energy"] == wanted.energies.tolist()
    assert np.array_equal(np.asarray(found["logits"], np.float32).reshape(-1, 4), wanted.logits)


async def test_preprocessed_tensors_get_the_answers_of_replay() -> None:
    inputs = random_inputs(20)
    async with serving(RUNTIME) as client:
        response = await client.post(URL, json=asked(inputs.ravel().tolist(), "FP32", *inputs.shape, threshold=0.7))
    check(outputs(response), inputs, 0.7)
    assert response.json()["parameters"]["threshold"] == 0.7


async def test_raw_pixels_are_normalised_by_the_server() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    async with serving(RUNTIME) as client:
        response = await client.post(URL, json=asked(pixels.ravel().tolist(), "UINT8", *pixels.shape))
    check(outputs(response), normalise(pixels, RUNTIME.manifest.preprocess))


async def test_encoded_images_get_the_same_answer_as_from_predict() -> None:
    photos = [encoded(random_photo(seed), "JPEG") for seed in range(3)]
    texts = [base64.b64encode(photo).decode() for photo in photos]
    async with serving(RUNTIME) as client:
        found = outputs(await client.post(URL, json=asked(texts, "BYTES", 3)))
        plain = (await client.post("/predict", json={"images": texts, "logits": True})).json()["predictions"]
    assert found["label"] == [each["label"] for each in plain]
    assert found["energy"] == [each["energy"] for each in plain]
    assert found["exit_stage"] == [each["stage"] for each in plain]


async def test_a_large_binary_request_is_read_beside_the_event_loop_and_answered_in_binary() -> None:
    inputs = random_inputs(100)
    body = inputs.tobytes()
    head = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[100,3,8,8],"parameters":{"binary_data_size":%d}}],'
    head = head % len(body) + b'"outputs":[{"name":"exit_stage","parameters":{"binary_data":true}}]}'
    async with serving(RUNTIME) as client:
        response = await client.post(URL, content=head + body, headers={BINARY: str(len(head))})
    size = int(response.headers[BINARY])
    assert np.frombuffer(response.content[size:], "<i4").tolist() == expected(RUNTIME, inputs).stages.tolist()


async def test_counts_are_those_of_what_was_asked() -> None:
    runtime = FakeRuntime(np.array([[[9.0, 0, 0], [0.1, 0, 0]], [[9.0, 0, 0], [9.0, 0, 0]]]))
    images = runtime.images([0, 1, 1])
    async with serving(runtime) as client:
        for _ in range(2):
            await client.post(URL, json=asked(images.ravel().tolist(), "FP32", *images.shape))
        await client.post(URL, json=asked(images.ravel().tolist(), "FP32", 1, 1))
        every = (await client.get("/v2/models/stats")).json()["model_stats"]
        alone = (await client.get("/v2/models/tiny/versions/1/stats")).json()["model_stats"]
    total, *stages = every
    assert [(stage["name"], stage["inference_count"], stage["execution_count"]) for stage in stages] == [
        ("tiny/stage0", 2, 2),
        ("tiny/stage1", 4, 2),
    ]
    assert (total["inference_count"], total["execution_count"]) == (6, 2)
    assert total["inference_stats"]["success"]["count"] == 2
    assert total["last_inference"] > 1_700_000_000_000
    assert [batch["batch_size"] for batch in total["batch_stats"]] == [4]
    for spent in (total["inference_stats"], *total["batch_stats"]):  # a load generator ends itself where they differ
        assert len({spent[f"compute_{part}"]["count"] for part in ("input", "infer", "output")}) == 1
    assert alone == [total]


async def test_a_timeout_in_the_request_is_its_deadline() -> None:
    runtime = FakeRuntime(np.ones((1, 1, 2)))
    runtime.costs = type(runtime.costs)((1,), ((0.5,),))
    images = runtime.images([0])
    async with serving(runtime) as client:
        response = await client.post(URL, json=asked(images.ravel().tolist(), "FP32", *images.shape, timeout=1000))
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models", "/v2/models/tiny", "/v2/models/tiny/ready"])
async def test_the_protocols_addresses_are_there(path: str) -> None:
    async with serving(RUNTIME) as client:
        assert (await client.get(path)).status_code == 200


async def test_an_unknown_model_or_version_is_refused_in_the_protocols_shape() -> None:
    async with serving(RUNTIME) as client:
        for path in ("/v2/models/cat", "/v2/models/tiny/versions/7"):
            response = await client.get(path)
            assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
            assert isinstance(response.json()["error"], str)


ADMIN = {"X-Admin-Key": "administrator"}
DIGEST = hashlib.sha256(b"administrator").hexdigest()


async def test_the_repository_is_listed_loaded_and_unloaded_with_the_admin_key(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_tiny_bundle(tmp_path / name, name=name)
    app = create_app(ServerSettings(bundle=tmp_path, admin_key_sha256=DIGEST))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        unloaded = await client.post("/v2/repository/models/cat/unload", headers=ADMIN)
        listed = (await client.post("/v2/repository/index", headers=ADMIN)).json()
        loaded = await client.post("/v2/repository/models/cat/load", headers=ADMIN)
        last = [(await client.post(f"/v2/repository/models/{name}/unload", headers=ADMIN)) for name in ("cat", "dog")]
    assert [(row["name"], row["state"]) for row in listed] == [("dog", "READY"), ("cat", "UNAVAILABLE")]
    assert (unloaded.status_code, loaded.status_code) == (200, 200)
    assert [response.status_code for response in last] == [200, 409]


async def test_a_broken_bundle_is_not_loaded_and_what_was_served_still_is(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "cat", name="cat")
    app = create_app(ServerSettings(bundle=tmp_path, admin_key_sha256=DIGEST))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        (tmp_path / "cat" / "stage0.onnx").write_bytes(b"no network")
        refused = await client.post("/v2/repository/models/cat/load", headers=ADMIN)
        ready = await client.get("/v2/models/cat/ready")
    assert (refused.status_code, refused.json()["code"]) == (500, "bad_bundle")
    assert "sha256" in refused.json()["error"]
    assert ready.status_code == 200


async def test_the_repository_is_closed_to_others() -> None:
    async with serving(RUNTIME, admin_key_sha256=DIGEST) as client:
        response = await client.post("/v2/repository/index", headers={"X-Admin-Key": "guess"})
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


def test_what_is_not_installed_has_no_version() -> None:
    assert version_of("pytest") == pytest.__version__
    assert version_of("no such package") == "0"
