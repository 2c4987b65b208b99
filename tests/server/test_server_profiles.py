"""Thresholds by name: asked for, as a default, and changed while the server serves."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cascade.errors import UnknownProfile
from cascade.exits import Threshold
from cascade.replay import replay
from server.app import create_app
from server.library import Library
from server.metrics import Metrics
from server.models import Model
from server.runtime import OnnxRuntime
from server.schemas import Answer
from tests.builders import encoded, random_inputs, random_photo, tiny_bundle, write_tiny_bundle
from tests.server.harness import client_of, serving, settings_for_tests

PROFILES = {"full": (1.0,), "first": (0.0,), "steps": (0.55, 0.7)}
RUNTIME = OnnxRuntime(tiny_bundle(profiles=PROFILES))
INPUTS = random_inputs(20)
PHOTO, PNG = encoded(random_photo()), {"Content-Type": "image/png"}
KEY = "administrator"
HEADERS = {"X-Admin-Key": KEY}
MANAGED = {"admin_key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}


def stages(threshold: Threshold) -> list[int]:
    """Where replay lets the inputs leave."""
    logits = [RUNTIME.run(stage, INPUTS) for stage in range(3)]
    found: list[int] = replay(logits, threshold).stages.tolist()
    return found


@pytest.mark.parametrize("name", PROFILES)
async def test_a_profile_gives_the_exits_of_replay_at_its_thresholds(name: str) -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", json={"inputs": INPUTS.tolist(), "profile": name})
    answer = Answer.model_validate_json(response.content)
    limits = PROFILES[name]
    threshold: Threshold = limits[0] if len(limits) == 1 else limits
    assert [each.stage for each in answer.predictions] == stages(threshold)
    assert answer.threshold == (list(limits) if len(limits) > 1 else limits[0])


async def test_requests_with_different_profiles_share_batches_and_keep_their_own() -> None:
    async with serving(RUNTIME) as client:
        for name, stage in (("full", 2), ("first", 0), ("full", 2)):
            response = await client.post("/predict", params={"profile": name}, content=PHOTO, headers=PNG)
            assert response.json()["predictions"][0]["stage"] == stage


async def test_an_unknown_profile_is_refused_with_those_there_are() -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict?profile=best", content=PHOTO, headers=PNG)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unknown_profile")
    assert "there are full, first, steps" in error["message"]


async def test_without_profiles_the_answer_says_how_to_get_some() -> None:
    async with serving(OnnxRuntime(tiny_bundle())) as client:
        response = await client.post("/predict?profile=best", content=PHOTO, headers=PNG)
    assert "rescade calibrate" in response.json()["error"]["message"]


@pytest.mark.parametrize("query", ["profile=full&threshold=0.5", "profile="])
async def test_a_profile_beside_a_threshold_and_one_without_a_name_are_refused(query: str) -> None:
    async with serving(RUNTIME) as client:
        assert (await client.post(f"/predict?{query}", content=PHOTO, headers=PNG)).status_code == 400


async def test_the_open_inference_protocol_takes_a_profile_and_says_its_thresholds() -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [20, 3, 8, 8], "data": INPUTS.ravel().tolist()}
    asked: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": "exit_stage"}]}
    asked["parameters"] = {"profile": "steps"}
    async with serving(RUNTIME) as client:
        document = (await client.post("/v2/models/tiny/infer", json=asked)).json()
    assert document["outputs"][0]["data"] == stages(PROFILES["steps"])
    assert document["parameters"]["threshold"] == "0.55,0.7"


async def test_a_setting_makes_a_profile_the_default() -> None:
    async with serving(RUNTIME, profile="first") as client:
        answer = (await client.post("/predict", content=PHOTO, headers=PNG)).json()
        other = (await client.post("/predict?threshold=1", content=PHOTO, headers=PNG)).json()
    assert (answer["threshold"], other["threshold"]) == (0, 1)


def test_a_bundle_without_the_profile_of_the_settings_is_not_served() -> None:
    with pytest.raises(UnknownProfile, match="no profile 'best'"):
        Model(settings_for_tests(profile="best"), RUNTIME, Metrics())


def test_a_folder_whose_bundle_lacks_the_profile_is_not_opened(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, profiles=PROFILES)
    assert Library([tmp_path]).open("full")
    with pytest.raises(UnknownProfile, match="there are full, first, steps"):
        Library([tmp_path]).open("best")


def test_a_threshold_and_a_profile_are_not_both_set() -> None:
    with pytest.raises(ValidationError, match="threshold and profile are both given"):
        settings_for_tests(threshold=0.5, profile="full")


async def test_a_profile_takes_the_place_of_a_changed_threshold_and_the_other_way_round(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, profiles=PROFILES)
    app = create_app(settings_for_tests(bundle=tmp_path, **MANAGED))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        seen = []
        nothing = {"profile": None, "threshold": None}
        for change in ({"threshold": 0.8}, {"profile": "steps"}, {"threshold": 0.9}, nothing):
            await client.patch("/admin/models/tiny", json=change, headers=HEADERS)
            seen.append((await client.post("/predict", content=PHOTO, headers=PNG)).json()["threshold"])
        refused = [
            (await client.patch("/admin/models/tiny", json=change, headers=HEADERS)).status_code
            for change in ({"profile": "best"}, {"profile": "full", "threshold": 0.5}, {"profile": 7})
        ]
    assert seen == [0.8, [0.55, 0.7], 0.9, 0.6]
    assert refused == [400, 400, 400]


async def test_a_version_that_comes_without_the_profile_is_served_by_its_own_threshold_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_bundle(tmp_path, profiles=PROFILES)
    app = create_app(settings_for_tests(bundle=tmp_path, **MANAGED))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        await client.patch("/admin/models/tiny", json={"profile": "full"}, headers=HEADERS)
        write_tiny_bundle(tmp_path, version="2")
        with caplog.at_level(logging.ERROR):
            await client.post("/admin/reload", headers=HEADERS)
        answer = (await client.post("/predict", content=PHOTO, headers=PNG)).json()
    assert (answer["version"], answer["threshold"]) == ("2", 0.6)
    assert "profile is not there" in caplog.messages
