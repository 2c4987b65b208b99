"""Reloading, and values that change while the server serves, by those who may."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.schemas import AdminList, Changed, Failure, ReloadFailure, Report
from tests.builders import encoded, random_photo, write_tiny_bundle
from tests.server.harness import client_of, settings_for_tests

KEY = "administrator"
HEADERS = {"X-Admin-Key": KEY}
PNG = {"Content-Type": "image/png"}
PHOTO = encoded(random_photo())


@asynccontextmanager
async def managed(folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server over the bundles in a folder, that may manage it."""
    given = {"bundle": folder, "admin_key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), **settings}
    app = create_app(settings_for_tests(**given))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        client.headers.update(HEADERS)
        yield client


async def answer(client: httpx.AsyncClient) -> tuple[str, float]:
    """Version and threshold of an answer of the first model."""
    document = (await client.post("/predict", content=PHOTO, headers=PNG)).json()
    return document["version"], document["threshold"]


async def test_a_reload_serves_what_is_new_and_takes_out_what_is_gone(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a")
    async with managed(tmp_path) as client:
        write_tiny_bundle(tmp_path / "a", version="2", threshold=0.7)
        response = await client.post("/admin/reload")
        assert await answer(client) == ("2", 0.7)
        assert [row["versions"] for row in (await client.get("/models")).json()["models"]] == [["2"]]
    rows = Report.model_validate_json(response.content).bundles
    assert [(row.version, row.result) for row in rows] == [("2", "loaded"), ("1", "removed")]


async def test_a_broken_bundle_is_reported_and_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        write_tiny_bundle(tmp_path / name, name=name)
    async with managed(tmp_path) as client:
        write_tiny_bundle(tmp_path / "a", name="a", version="2")
        (tmp_path / "a" / "stage2.onnx").write_bytes(b"cut")
        write_tiny_bundle(tmp_path / "b", name="b", version="2")
        response = await client.post("/admin/reload")
        assert (await answer(client))[0] == "1"
        assert (await client.get("/models/b/versions/2/bundle")).status_code == 200
    failure = ReloadFailure.model_validate_json(response.content)
    assert (response.status_code, failure.error.code) == (422, "bad_bundle")
    assert "stages[2].sha256" in failure.error.message
    assert [row.result for row in failure.bundles] == ["kept", "loaded", "removed", "broken"]
    assert [record.levelname for record in caplog.records if record.getMessage() == "bundle not loaded"] == ["ERROR"]


async def test_the_last_bundle_cannot_be_reloaded_away(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a" / "b")
    async with managed(tmp_path / "a") as client:
        (tmp_path / "a").rename(tmp_path / "gone")
        response = await client.post("/admin/reload")
        assert (await answer(client))[0] == "1"
    assert Failure.model_validate_json(response.content).error.code in ("conflict", "bad_bundle")


async def test_a_changed_threshold_holds_from_then_on_and_is_logged_with_who_and_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server")
    write_tiny_bundle(tmp_path)
    async with managed(tmp_path) as client:
        patch = {"threshold": 0.8, "max_stage": 1}
        response = await client.patch("/admin/models/tiny", json=patch)
        assert await answer(client) == ("1", 0.8)
        await client.patch("/admin/models/tiny", json={"threshold": None})
        assert await answer(client) == ("1", 0.6)
    changed = Changed.model_validate_json(response.content)
    assert (changed.old.threshold, changed.new.threshold, changed.new.max_stage) == (None, 0.8, 1)
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "controls changed"]
    none = {"threshold": None, "max_stage": None, "profile": None}
    assert lines[0] == {"model": "tiny", "old": none, "new": {**none, **patch}}


async def test_a_changed_value_outlives_a_reload_of_the_same_name_and_a_request_may_still_ask_otherwise(
    tmp_path: Path,
) -> None:
    write_tiny_bundle(tmp_path)
    async with managed(tmp_path) as client:
        await client.patch("/admin/models/tiny", json={"threshold": 0.0, "max_stage": 0})
        write_tiny_bundle(tmp_path, version="2")
        await client.post("/admin/reload")
        assert await answer(client) == ("2", 0.0)
        asked = await client.post("/predict?threshold=1&max_stage=2", content=PHOTO, headers=PNG)
    assert (asked.json()["threshold"], asked.json()["predictions"][0]["stage"]) == (1, 2)


async def test_the_list_tells_values_and_own_values_of_what_is_served_and_why_the_rest_is_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny_bundle(tmp_path / name, name=name)
    async with managed(tmp_path, threshold=0.5) as client:
        await client.patch("/admin/models/a", json={"threshold": 0.9})
        write_tiny_bundle(tmp_path / "b", name="b", version="2")
        (tmp_path / "b" / "stage0.onnx").unlink()
        await client.post("/admin/reload")
        rows = AdminList.model_validate_json((await client.get("/admin/models")).content).models
    assert [(row.name, row.version, row.state) for row in rows] == [
        ("a", "1", "READY"),
        ("b", "1", "READY"),
        ("b", "2", "UNAVAILABLE"),
    ]
    assert [row.controls and row.controls.threshold for row in rows] == [0.9, 0.5, None]
    assert [row.own and row.own.threshold for row in rows] == [0.5, 0.5, None]


BAD: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 400),
    "no object": (b"[1]", 400),
    "nothing": (b"{}", 400),
    "another name": (b'{"top_k": 1}', 400),
    "a text": (b'{"threshold": "high"}', 400),
    "no number": (b'{"threshold": NaN}', 400),
    "half a stage": (b'{"max_stage": 0.5}', 400),
    "too much": (b" " * 70_000, 413),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_change_that_makes_no_sense_is_refused(case: str, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    body, status = BAD[case]
    async with managed(tmp_path) as client:
        response = await client.patch("/admin/models/tiny", content=body)
        assert await answer(client) == ("1", 0.6)
    assert response.status_code == status
    Failure.model_validate_json(response.content)


async def test_a_model_there_is_not_cannot_be_changed(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    async with managed(tmp_path) as client:
        response = await client.patch("/admin/models/fox", json={"threshold": 0.5})
    assert response.status_code == 404
