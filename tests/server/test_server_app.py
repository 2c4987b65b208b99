"""Health, the bundle, metrics, OpenAPI, logs, and what happens when callers or code let go."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from cascade.bundle import parse
from cascade.errors import BundleError
from server.app import create_app, from_environment
from server.logs import JsonFormatter, configure, request_id
from server.schemas import Failure
from tests.builders import FakeRuntime, encoded, random_photo, write_tiny_bundle
from tests.server.harness import client_of, serving, settings_for_tests

SURE = np.array([[[9.0, 0.0]], [[9.0, 0.0]]])
ONE = {"inputs": FakeRuntime.images([0]).tolist()}


async def test_it_is_ready_only_after_every_stage_is_warm() -> None:
    held = threading.Event()
    runtime = FakeRuntime(SURE, warm=lambda: held.wait(10))
    app = create_app(settings_for_tests(), runtime)
    async with app.router.lifespan_context(app), client_of(app) as client:
        early = [await client.get("/health/ready"), await client.post("/predict", json=ONE)]
        live = await client.get("/health/live")
        held.set()
        await app.state.service.warmed.wait()
        ready = await client.get("/health/ready")
    assert [response.status_code for response in early] == [503, 503]
    assert [response.json()["error"]["code"] for response in early] == ["not_ready", "not_ready"]
    assert early[0].headers["Retry-After"] == "1"
    assert (live.status_code, ready.status_code, ready.json()) == (200, 200, {"status": "ready"})


async def test_while_draining_it_is_not_ready_but_still_answers() -> None:
    async with serving(FakeRuntime(SURE)) as client:
        client.app.state.service.drain()  # type: ignore[attr-defined]
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.post("/predict", json=ONE)).status_code == 200


async def test_a_warm_up_that_fails_is_remembered_and_never_ready() -> None:
    async with serving(FakeRuntime(SURE, warm=lambda: 1 / 0)) as client:
        assert isinstance(client.app.state.service.failure, ZeroDivisionError)  # type: ignore[attr-defined]
        assert (await client.get("/health/ready")).status_code == 503


async def test_the_bundle_is_its_manifest() -> None:
    runtime = FakeRuntime(SURE)
    async with serving(runtime) as client:
        response = await client.get("/bundle")
    assert parse(response.json()) == runtime.manifest


async def test_metrics_count_requests_batches_and_exits() -> None:
    runtime = FakeRuntime(np.array([[[9.0, 0], [0, 0]], [[9, 0], [9, 0]]]))
    async with serving(runtime) as client:
        await client.post("/predict", json={"inputs": runtime.images([0, 1, 1]).tolist()})
        await client.post("/predict", content=b"junk", headers={"Content-Type": "image/png"})
        await client.request("WEIRD", "/somewhere")
        response = await client.get("/metrics")
    lines = response.text.splitlines()
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for line in (
        'rescade_requests_total{method="POST",path="/predict",status="200"} 1.0',
        'rescade_requests_total{method="POST",path="/predict",status="422"} 1.0',
        'rescade_requests_total{method="other",path="other",status="404"} 1.0',
        'rescade_request_seconds_count{path="/predict"} 2.0',
        'rescade_exits_total{model="tiny",stage="0"} 1.0',
        'rescade_exits_total{model="tiny",stage="1"} 2.0',
        'rescade_batch_size_sum{model="tiny",stage="0"} 3.0',
        'rescade_batch_size_sum{model="tiny",stage="1"} 2.0',
        'rescade_run_seconds_count{model="tiny",stage="1"} 1.0',
        'rescade_queue_depth{model="tiny",stage="0"} 0.0',
        'rescade_images_in_flight{model="tiny"} 0.0',
        'rescade_arrivals_total{model="tiny",stage="1"} 2.0',
        'rescade_batches_total{model="tiny",reason="idle",stage="0"} 1.0',
        'rescade_macs_total{model="tiny"} 70000.0',
        'rescade_macs_saved_total{model="tiny"} 20000.0',
        'rescade_inferences_total{model="tiny",outcome="success"} 1.0',
        'rescade_inferences_total{model="tiny",outcome="fail"} 1.0',
        "rescade_requests_in_flight 1.0",
    ):
        assert line in lines


async def test_the_api_document_is_complete() -> None:
    async with serving(FakeRuntime(SURE)) as client:
        document = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    predict = document["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert [each["name"] for each in predict["parameters"]] == [
        "threshold",
        "max_stage",
        "top_k",
        "logits",
        "allow_truncated",
        "profile",
        "priority",
    ]
    assert set(predict["responses"]) == {"200", "400", "408", "413", "415", "422", "500", "503", "504"}
    assert {"Answer", "Prediction", "Failure"} <= set(document["components"]["schemas"])
    assert {"/health/live", "/health/ready", "/bundle", "/metrics"} < set(document["paths"])


async def test_the_documents_example_is_answered() -> None:
    async with serving() as client:
        document = (await client.get("/openapi.json")).json()
        content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
        response = await client.post("/predict", json=content["examples"]["images"]["value"])
    assert response.status_code == 200
    assert len(response.json()["predictions"][0]["top"]) == 3


async def test_something_unforeseen_is_a_plain_500_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("secret")

    async with app.router.lifespan_context(app), client_of(app) as client:
        response = await client.get("/broken")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_other_http_errors_keep_the_one_shape() -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")

    async with app.router.lifespan_context(app), client_of(app) as client:
        response = await client.get("/teapot")
    failure = Failure.model_validate_json(response.content).error
    assert (response.status_code, failure.code, failure.message) == (418, "http_error", "short and stout")


async def ask(app: Any, scope: Scope, messages: list[Message]) -> list[Message]:
    """Speak ASGI by hand: these messages, and after them silence."""
    incoming, sent = iter(messages), list[Message]()

    async def receive() -> Message:
        for message in incoming:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def post(path: str = "/predict") -> Scope:
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}


async def test_a_client_that_hangs_up_frees_its_place_and_harms_nobody() -> None:
    entered, held = threading.Semaphore(0), threading.Event()

    def before(stage: int) -> None:
        entered.release()
        held.wait(10)

    app = create_app(settings_for_tests(), FakeRuntime(SURE, before))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        staying = asyncio.create_task(client.post("/predict", json=ONE))
        await asyncio.to_thread(entered.acquire, timeout=10)
        body = {"type": "http.request", "body": json.dumps(ONE).encode(), "more_body": False}
        odd = {"type": "http.request", "body": b"", "more_body": False}
        sent = await ask(app, post(), [body, odd, {"type": "http.disconnect"}])
        assert len(app.state.service.models.get().engine._scheduler) == 1
        held.set()
        assert (await staying).status_code == 200
    assert sent[0]["status"] == 499
    assert len(app.state.service.predictor.intake) == 0


async def test_a_client_that_hangs_up_halfway_through_its_body_is_nobody() -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))
    async with app.router.lifespan_context(app):
        await app.state.service.warmed.wait()
        body = {"type": "http.request", "body": b"{", "more_body": True}
        sent = await ask(app, post(), [body, {"type": "http.disconnect"}])
    assert sent[0]["status"] == 499


async def test_a_client_that_hangs_up_on_the_framework_is_nobody_too() -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))
    async with app.router.lifespan_context(app):
        await app.state.service.warmed.wait()
        body = {"type": "http.request", "body": b"{", "more_body": True}
        sent = await ask(app, post("/v2/models/tiny/infer"), [body, {"type": "http.disconnect"}])
    assert sent[0]["status"] == 499


async def test_an_error_in_front_of_the_framework_is_a_plain_500() -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        app.state.service.predictor.intake = None
        response = await client.post("/predict", json=ONE)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


async def test_a_server_that_stops_cancels_what_it_must() -> None:
    held = threading.Event()
    app = create_app(settings_for_tests(), FakeRuntime(SURE, lambda _: held.wait(10)))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        asked = asyncio.create_task(client.post("/predict", json=ONE))
        while not len(app.state.service.models.get().engine._scheduler):  # noqa: ASYNC110 - it is no event to anybody else
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert len(app.state.service.models.get().engine._scheduler) == 0
        held.set()


async def test_what_is_no_request_is_passed_on() -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))
    async with app.router.lifespan_context(app):
        sent = await ask(app, {"type": "websocket", "path": "/", "headers": []}, [{"type": "websocket.connect"}])
    assert sent == [{"type": "websocket.close", "code": 1000, "reason": ""}]


async def test_an_error_after_the_answer_has_begun_is_logged_and_not_answered_twice() -> None:
    app = create_app(settings_for_tests(), FakeRuntime(SURE))

    @app.get("/half")
    async def half() -> StreamingResponse:
        def body() -> Iterator[bytes]:
            yield b"first"
            raise ValueError

        return StreamingResponse(body())

    async with app.router.lifespan_context(app):
        sent = await ask(app, {**post("/half"), "method": "GET"}, [{"type": "http.request", "body": b""}])
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_each_request_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "server")
    async with serving(FakeRuntime(SURE)) as client:
        await client.post("/predict", json=ONE, headers={"X-Request-Id": "abc"})
        await client.get("/health/live")
        await client.post("/predict", content=b"")
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/predict", 200),
        ("GET", "/health/live", 200),
        ("POST", "/predict", 415),
    ]
    assert lines[0]["images"] == 1
    assert lines[0]["exits"] == [1, 0]
    assert lines[0]["duration_ms"] > 0
    assert lines[2]["error"] == "unsupported_type"


def test_a_log_line_carries_the_request_and_the_fault() -> None:
    token = request_id.set("r1")
    try:
        raise ValueError("no")
    except ValueError as error:
        fault = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("server.x", logging.ERROR, "", 0, "it %s", ("broke",), fault)
    record.fields = {"stage": 2}
    line = json.loads(JsonFormatter().format(record))
    request_id.reset(token)
    assert (line["level"], line["event"], line["request_id"], line["stage"]) == ("error", "it broke", "r1", 2)
    assert "ValueError: no" in line["exception"]


@pytest.mark.usefixtures("logging_as_it_was")
def test_logs_go_to_stderr_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info")
    logging.getLogger("server.y").info("hello")
    logging.getLogger("server.y").debug("quiet")
    logging.getLogger("uvicorn.error").info("chatter")
    output = capsys.readouterr()
    assert [json.loads(line)["event"] for line in output.err.splitlines()] == ["hello"]
    assert output.out == ""


@pytest.mark.usefixtures("logging_as_it_was")
async def test_an_application_can_be_made_from_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    monkeypatch.setenv("RESCADE_BUNDLE", str(tmp_path / "tiny"))
    monkeypatch.setenv("RESCADE_THRESHOLD", "0.25")
    app = from_environment()
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        headers = {"Content-Type": "image/png"}
        response = await client.post("/predict", content=encoded(random_photo()), headers=headers)
    assert response.json()["threshold"] == 0.25


async def test_a_bundle_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    app = create_app(settings_for_tests(bundle=tmp_path))
    with pytest.raises(BundleError, match=r"manifest.json"):
        async with app.router.lifespan_context(app):
            pass
