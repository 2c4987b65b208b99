"""Several models in one server: which of them answers, and what is told of them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI

from cascade.bundle import parse
from cascade.errors import NotReady
from server.app import create_app
from server.metrics import Metrics
from server.models import Model, Models
from server.routes import router
from server.runtime import OnnxRuntime, Runtime
from server.schemas import Failure, ModelList
from tests.builders import FakeRuntime, tiny_bundle, write_tiny_bundle
from tests.server.harness import client_of, serving, settings_for_tests

SURE = np.array([[[9.0, 0.0]]])
ONE = {"inputs": FakeRuntime.images([0]).tolist()}


def three() -> list[Runtime]:
    """Cat 10 and 9, and dog 1, each with a threshold of its own."""
    named = [("cat", "10", 0.5), ("cat", "9", 0.4), ("dog", "1", 0.3)]
    return [FakeRuntime(SURE, name=name, version=version, threshold=rho) for name, version, rho in named]


ADDRESSES = {
    "/predict": ("cat", "10", 0.5),
    "/models/cat/predict": ("cat", "10", 0.5),
    "/models/cat/versions/9/predict": ("cat", "9", 0.4),
    "/models/dog/predict": ("dog", "1", 0.3),
}


@pytest.mark.parametrize("path", ADDRESSES)
async def test_the_address_says_who_answers(path: str) -> None:
    async with serving(*three()) as client:
        answer = (await client.post(path, json=ONE)).json()
    assert (answer["model"], answer["version"], answer["threshold"]) == ADDRESSES[path]


@pytest.mark.parametrize("path", ["/models/fox/predict", "/models/cat/versions/8/predict"])
async def test_a_model_or_version_there_is_not_is_a_404_that_says_what_there_is(path: str) -> None:
    async with serving(*three()) as client:
        response = await client.post(path, json=ONE)
    error = Failure.model_validate_json(response.content).error
    assert (response.status_code, error.code) == (404, "unknown_model")
    assert ("cat, dog" if "fox" in path else "9, 10") in error.message


async def test_the_list_has_every_name_with_its_versions_in_natural_order() -> None:
    async with serving(*three()) as client:
        response = await client.get("/models")
    rows = ModelList.model_validate_json(response.content).models
    assert [(row.name, row.versions, row.current, row.ready) for row in rows] == [
        ("cat", ["9", "10"], "10", True),
        ("dog", ["1"], "1", True),
    ]
    assert [row.controls.threshold for row in rows] == [0.5, 0.3]


async def test_each_bundle_is_its_manifest() -> None:
    runtimes = three()
    async with serving(*runtimes) as client:
        paths = ["/bundle", "/models/cat/versions/9/bundle", "/models/dog/bundle"]
        found = [parse((await client.get(path)).json()) for path in paths]
        assert (await client.get("/models/fox/bundle")).status_code == 404
    assert found == [runtime.manifest for runtime in runtimes]


async def test_versions_of_a_name_share_its_figures_and_each_address_is_one_route() -> None:
    async with serving(*three()) as client:
        for path in ("/models/cat/predict", "/models/cat/versions/9/predict", "/models/dog/predict"):
            await client.post(path, json=ONE)
        lines = (await client.get("/metrics")).text.splitlines()
    assert 'rescade_exits_total{model="cat",stage="0"} 2.0' in lines
    assert 'rescade_exits_total{model="dog",stage="0"} 1.0' in lines
    assert 'rescade_requests_total{method="POST",path="/models/{name}/predict",status="200"} 2.0' in lines


async def test_the_framework_knows_the_same_addresses_and_gives_the_same_answers() -> None:
    app = FastAPI()
    app.include_router(router)
    async with serving(*three()) as client:
        app.state = client.app.state  # type: ignore[attr-defined]
        async with client_of(app) as framework:
            answers = {path: (await framework.post(path, json=ONE)).json() for path in ADDRESSES}
        assert (await client.get("/models/cat/predict")).status_code == 405
    found = {path: (each["model"], each["version"], each["threshold"]) for path, each in answers.items()}
    assert found == ADDRESSES


async def test_folders_of_bundles_are_served_whole(tmp_path: Path) -> None:
    for version in ("2", "10"):
        write_tiny_bundle(tmp_path / version, version=version)
    app = create_app(settings_for_tests(bundle=tmp_path))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        assert (await client.get("/models")).json()["models"][0]["versions"] == ["2", "10"]


def test_while_there_is_no_model_nobody_is_ready() -> None:
    with pytest.raises(NotReady):
        Models([]).get()


async def test_a_model_that_is_replaced_is_gone_at_once_though_the_collector_passes_over_it() -> None:
    model = Model(settings_for_tests(), OnnxRuntime(tiny_bundle()), Metrics())
    await model.engine.warm_up()
    with model:
        await model.engine.predict(FakeRuntime.images([0]), 0.5)
    parts = [weakref.ref(part) for part in (model, model.engine, model.engine._runtime)]
    gc.collect()
    gc.disable()
    try:
        model.retire()
        del model
        assert [part() for part in parts] == [None, None, None]
    finally:
        gc.enable()
