"""An application inside its lifespan, and a client that talks to it without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from cascade.exits import Floats
from cascade.replay import Replay, replay
from server.app import Service, create_app
from server.runtime import OnnxRuntime, Runtime
from server.settings import ServerSettings
from tests.builders import tiny_bundle


def settings_for_tests(**given: Any) -> ServerSettings:
    """Settings; the bundle is opened by nobody unless it is given."""
    return ServerSettings(**{"bundle": Path("nowhere"), **given})


@asynccontextmanager
async def serving(*runtimes: Runtime, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that is warm."""
    app = create_app(settings_for_tests(**settings), *(runtimes or [OnnxRuntime(tiny_bundle())]))
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        await service.warmed.wait()
        async with client_of(app) as client:
            client.app = app  # type: ignore[attr-defined]
            yield client


def client_of(app: Any) -> httpx.AsyncClient:
    """A client of an application, whether or not it is warm."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=30)


def expected(runtime: Runtime, images: Floats, threshold: float | None = None, max_stage: int | None = None) -> Replay:
    """What the cascade must answer: every stage over every image at once, then the reference."""
    rule = runtime.manifest.exit
    logits = [runtime.run(stage, images) for stage in range(len(runtime.manifest.stages))]
    return replay(logits, rule.threshold if threshold is None else threshold, rule.definition, max_stage)


def check_predictions(predictions: list[dict[str, Any]], wanted: Replay) -> None:
    """Compare answers with the reference: label, stage and energy, exactly."""
    assert [prediction["class"] for prediction in predictions] == wanted.classes.tolist()
    assert [prediction["stage"] for prediction in predictions] == wanted.stages.tolist()
    assert [prediction["energy"] for prediction in predictions] == wanted.energies.tolist()
