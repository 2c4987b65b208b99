"""`POST /predict` over HTTP: what it answers, and that nothing about its company changes that."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest

from cascade.exits import Floats
from cascade.pixels import normalise
from server.images import read_image
from server.runtime import OnnxRuntime
from server.schemas import Answer
from tests.builders import FakeRuntime, encoded, random_inputs, random_photo, tiny_bundle
from tests.server.harness import check_predictions, expected, serving

PNG = {"Content-Type": "image/png"}
RUNTIME = OnnxRuntime(tiny_bundle())
PHOTOS = [encoded(random_photo(seed)) for seed in range(12)]
INPUTS: Floats = normalise(
    np.stack([read_image(photo, RUNTIME.manifest.preprocess, 10_000) for photo in PHOTOS]), RUNTIME.manifest.preprocess
)
WANTED = expected(RUNTIME, INPUTS)


def files(photos: list[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{number}.png", photo, "image/png")) for number, photo in enumerate(photos)]


def predictions(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    Answer.model_validate_json(response.content)
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def test_the_photos_here_leave_at_every_stage() -> None:
    assert set(WANTED.stages) == {0, 1, 2}


async def test_one_raw_image_gets_one_prediction() -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", content=PHOTOS[0], headers=PNG)
    answer = response.json()
    check_predictions(predictions(response), expected(RUNTIME, INPUTS[:1]))
    assert (answer["model"], answer["version"], answer["threshold"]) == ("tiny", "1", 0.6)
    assert answer["predictions"][0]["label"] == f"class {answer['predictions'][0]['class']}"


@pytest.mark.parametrize("kind", ["image/jpeg", "IMAGE/*", "application/octet-stream", "image/png; q=1"])
async def test_the_bytes_say_what_an_image_is_and_not_the_header(kind: str) -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", content=PHOTOS[0], headers={"Content-Type": kind})
    check_predictions(predictions(response), expected(RUNTIME, INPUTS[:1]))


async def test_forms_and_json_and_inputs_give_the_same_answers() -> None:
    texts = [base64.b64encode(photo).decode() for photo in PHOTOS]
    async with serving(RUNTIME) as client:
        answers = [
            await client.post("/predict", files=files(PHOTOS)),
            await client.post("/predict", json={"images": texts}),
            await client.post("/predict", json={"inputs": INPUTS.tolist()}),
        ]
    for response in answers:
        check_predictions(predictions(response), WANTED)


async def test_one_input_may_come_without_a_batch_dimension() -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", json={"inputs": INPUTS[3].tolist()})
    check_predictions(predictions(response), expected(RUNTIME, INPUTS[3:4]))


@pytest.mark.parametrize("size", [1, 2, 5, 12])
async def test_answers_do_not_depend_on_how_images_are_grouped(size: int) -> None:
    found = []
    async with serving(RUNTIME) as client:
        for start in range(0, 12, size):
            response = await client.post("/predict", files=files(PHOTOS[start : start + size]))
            found += predictions(response)
    check_predictions(found, WANTED)


async def test_answers_do_not_depend_on_company_or_order() -> None:
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(12), 5))
    async with serving(RUNTIME, max_batch=5) as client:
        posts = [client.post("/predict", content=PHOTOS[index], headers=PNG) for index in order]
        answers = await asyncio.gather(*posts)
    check_predictions([predictions(answer)[0] for answer in answers], expected(RUNTIME, INPUTS[order]))


async def test_each_request_has_its_own_threshold_and_last_stage() -> None:
    options: list[dict[str, Any]] = [{"threshold": 0}, {"threshold": 1}, {"threshold": 0.7, "max_stage": 1}, {}]
    async with serving(RUNTIME) as client:
        asked = [client.post("/predict", files=files(PHOTOS), params=each) for each in options]
        answers = await asyncio.gather(*asked)
    for response, each in zip(answers, options, strict=True):
        check_predictions(
            predictions(response), expected(RUNTIME, INPUTS, each.get("threshold"), each.get("max_stage"))
        )
    assert [answer.json()["threshold"] for answer in answers] == [0, 1, 0.7, 0.6]


async def test_options_may_stand_in_the_query_in_json_and_in_a_form() -> None:
    options = {"threshold": 0.9, "top_k": 3, "logits": True}
    async with serving(RUNTIME) as client:
        answers = [
            await client.post("/predict", content=PHOTOS[0], headers=PNG, params=options),
            await client.post("/predict", json={"inputs": INPUTS[:1].tolist(), **options}),
            await client.post("/predict", files=files(PHOTOS[:1]), data=options),
        ]
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert len(predictions(answers[0])[0]["top"]) == 3


async def test_the_servers_threshold_replaces_the_bundles() -> None:
    async with serving(RUNTIME, threshold=0.95) as client:
        response = await client.post("/predict", files=files(PHOTOS))
    check_predictions(predictions(response), expected(RUNTIME, INPUTS, 0.95))


async def test_top_names_classes_best_first_and_logits_are_the_sum() -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", files=files(PHOTOS), params={"top_k": 99, "logits": "true"})
    for row, prediction in enumerate(predictions(response)):
        logits = np.asarray(prediction["logits"], np.float32)
        assert np.array_equal(logits, WANTED.logits[row])
        assert [each["class"] for each in prediction["top"]] == np.argsort(-logits).tolist()
        assert {key: prediction[key] for key in ("label", "class", "score")} == prediction["top"][0]
        assert sum(each["score"] for each in prediction["top"]) == pytest.approx(1)


async def test_ids_and_timings_are_in_the_headers() -> None:
    async with serving(RUNTIME) as client:
        named = await client.post("/predict", content=PHOTOS[0], headers={**PNG, "X-Request-Id": "mine-7"})
        unnamed = await client.post("/predict", content=PHOTOS[0], headers={**PNG, "X-Request-Id": "a\tb"})
    assert named.headers["X-Request-Id"] == "mine-7"
    assert re.fullmatch(r"[0-9a-f]{10}-[0-9a-f]+", unnamed.headers["X-Request-Id"])
    assert [part.split(";")[0] for part in named.headers["Server-Timing"].split(", ")] == ["decode", "queue", "run"]


async def test_logits_that_are_not_finite_become_null_and_go_on_to_the_end() -> None:
    table = np.array([[[np.nan, 1.0]], [[1.0, 2.0]]])
    runtime = FakeRuntime(table)
    async with serving(runtime) as client:
        response = await client.post("/predict", json={"inputs": runtime.images([0]).tolist(), "logits": True})
    assert predictions(response)[0] == {
        "label": "class 0",
        "class": 0,
        "score": None,
        "stage": 1,
        "energy": None,
        "top": [{"label": "class 0", "class": 0, "score": None}],
        "logits": [None, 3.0],
    }


async def test_the_largest_finite_inputs_are_answered() -> None:
    inputs = np.full((1, 3, 8, 8), 3e38, np.float32)
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", content=json.dumps({"inputs": inputs.tolist()}), headers=JSON)
    assert predictions(response)[0]["stage"] == 2


JSON = {"Content-Type": "application/json"}


async def test_a_network_that_cannot_be_run_is_a_500_in_the_one_shape_and_the_server_goes_on() -> None:
    broken = True

    def before(stage: int) -> None:
        if broken:
            raise RuntimeError("device lost")

    runtime = FakeRuntime(np.ones((1, 1, 2)), before)
    async with serving(runtime) as client:
        body = {"inputs": runtime.images([0]).tolist()}
        failed = await client.post("/predict", json=body)
        broken = False
        assert (await client.post("/predict", json=body)).status_code == 200
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "stage_failed")
    assert "device lost" not in failed.text


async def test_random_inputs_are_answered_exactly_as_replay_does_at_any_batch_limit() -> None:
    inputs = random_inputs(40, seed=5)
    wanted = expected(RUNTIME, inputs)
    for max_batch in (1, 3, 64):
        async with serving(RUNTIME, max_batch=max_batch) as client:
            response = await client.post("/predict", json={"inputs": inputs.tolist()})
        check_predictions(predictions(response), wanted)
