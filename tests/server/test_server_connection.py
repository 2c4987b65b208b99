"""The short way of light questions: the same answers as the ordinary way, and every way out of it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server import predict
from server.app import Application
from server.runtime import OnnxRuntime
from tests.builders import FakeRuntime, tiny_bundle
from tests.server.harness import client_of
from tests.server.test_server_engine import TABLE, Gate
from tests.server.wire import connections, jpeg, question, until

SURE, UNSURE = 0, 2


def photo(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def in_hand(app: Application) -> tuple[int, int, int]:
    """Requests let in, images in the engine, and holders of the model."""
    model = app.service.models.get()
    return len(app.service.predictor.intake), model.engine.in_hand, model._holders


async def test_a_light_question_gets_the_answer_of_the_ordinary_way() -> None:
    async with connections(OnnxRuntime(tiny_bundle())) as (app, connect), client_of(app) as client:
        peer = connect()
        for seed in range(20):
            query = ["", "?top_k=3&logits=true", "?threshold=1", "?max_stage=1&threshold=0.99"][seed % 4]
            body, size = photo(seed, 8 + seed), {"content-type": "image/jpeg"}
            peer.say(question(body, query))
            [(status, headers, answer)] = await peer.answers()
            ordinary = await client.post(f"/predict{query}", content=body, headers=size)
            assert (status, answer, headers["date"]) == (200, ordinary.json(), "today")
            assert set(ordinary.headers) <= set(headers)
        assert in_hand(app) == (0, 0, 0)


async def test_it_asks_nothing_of_the_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connections(FakeRuntime(TABLE)) as (app, connect):
        monkeypatch.setattr(app, "front", None)
        peer = connect()
        for kind in ("image/jpeg", "application/octet-stream"):
            peer.say(question(jpeg(UNSURE), kind=kind, X_Request_Id="mine"))
            [(status, headers, answer)] = await peer.answers()
            assert (status, headers["x-request-id"], answer["predictions"][0]["stage"]) == (200, "mine", 2)
        text = app.service.metrics.render().decode()
    assert 'rescade_requests_total{method="POST",path="/predict",status="200"} 2.0' in text
    assert 'rescade_inferences_total{model="tiny",outcome="success"} 2.0' in text
    assert "rescade_requests_in_flight 0.0" in text


PNG = io.BytesIO()
Image.new("RGB", (8, 8)).save(PNG, "PNG")
ORDINARY = {
    "another format": question(PNG.getvalue(), kind="image/png"),
    "another format, whatever it says": question(PNG.getvalue()),
    "another version": question(jpeg(0)).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a header twice": question(jpeg(0), X_Request_Id="a\r\nX-Request-Id: b"),
    "an image beyond what is light": question(jpeg(0, 400)),
    "an expectation": question(jpeg(0), Expect="100-continue").replace(b"\r\n\r\n", b"\r\n\r\n", 1),
    "chunks": question(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(jpeg(0)), jpeg(0)),
}


@pytest.mark.parametrize("case", ORDINARY)
async def test_what_is_not_light_goes_the_ordinary_way(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        monkeypatch.setattr("server.direct.Inquiry", None)
        peer = connect()
        peer.say(ORDINARY[case])
        await asyncio.sleep(0)
        if peer.wire.sent.startswith(b"HTTP/1.1 100"):
            peer.wire.sent = b""
        [(status, _, answer)] = await peer.answers()
    assert (status, answer["predictions"][0]["class"]) == (200, 0)


async def test_a_wish_for_another_protocol_is_no_light_question(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        monkeypatch.setattr("server.direct.Inquiry", None)
        peer = connect()
        peer.say(question(jpeg(0), Connection="upgrade", Upgrade="h2c"))
        [(status, _, answer)] = await peer.answers()
    assert (status, answer["error"]["code"]) == (400, "bad_request")  # what follows such a head is no body


@pytest.mark.parametrize("line", [b"GET /predict", b"POST /models", b"POST /predict#part", b"POST /predictions"])
async def test_other_addresses_and_methods_are_answered_as_ever(line: bytes) -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        peer.say(question(jpeg(0)).replace(b"POST /predict", line, 1))
        [(status, _, answer)] = await peer.answers()
    assert status in (200, 404, 405)
    assert (status == 200) == (b"#" in line), answer


async def test_a_body_that_comes_in_parts_goes_the_ordinary_way() -> None:
    async with connections(FakeRuntime(TABLE)) as (app, connect):
        peer, data = connect(), question(jpeg(UNSURE))
        head = data.index(b"\r\n\r\n") + 4
        for start, end in ((0, 9), (9, head), (head, head + 100), (head + 100, len(data))):
            peer.say(data[start:end])
            await asyncio.sleep(0)
        [(status, _, answer)] = await peer.answers()
        assert in_hand(app) == (0, 0, 0)
    assert (status, answer["predictions"][0]["stage"]) == (200, 2)


async def test_a_body_that_is_no_http_gets_400_and_the_connection_ends() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        peer.say(question(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"what?\r\n")
        assert peer.wire.sent.startswith(b"HTTP/1.1 400")
        assert peer.wire.closed


async def test_questions_that_come_in_one_read_are_answered_in_order() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        peer.say(question(jpeg(UNSURE), X_Request_Id="1") + question(jpeg(SURE), X_Request_Id="2") + question(jpeg(1)))
        answers = await peer.answers(3)
    assert [headers["x-request-id"] for _, headers, _ in answers[:2]] == ["1", "2"]
    assert [answer["predictions"][0]["stage"] for _, _, answer in answers] == [2, 0, 1]
    assert peer.wire.reading


async def test_a_client_that_wants_no_more_is_told_so_and_let_go() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        peer.say(question(jpeg(SURE), Connection="close"))
        [(status, headers, _)] = await peer.answers()
    assert (status, headers["connection"], peer.wire.closed) == (200, "close", True)


async def test_a_connection_that_is_told_to_shut_down_ends_with_its_answer() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate)) as (_, connect):
        idle, busy = connect(), connect()
        busy.say(question(jpeg(SURE)))
        await gate.someone_is_inside()
        for peer in (idle, busy):
            peer.protocol.shutdown()
        assert (idle.wire.closed, busy.wire.closed) == (True, False)
        gate.opened.set()
        [(status, headers, _)] = await busy.answers()
    assert (status, headers["connection"], busy.wire.closed) == (200, "close", True)


async def test_who_hangs_up_frees_its_place_and_harms_nobody() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate)) as (app, connect):
        first, gone, stays = connect(), connect(), connect()
        first.say(question(jpeg(SURE)))
        await gate.someone_is_inside()
        gone.say(question(jpeg(UNSURE)))
        stays.say(question(jpeg(1)))
        gone.protocol.connection_lost(None)
        gone.protocol.connection_lost(None)
        assert in_hand(app) == (2, 2, 2)
        gate.opened.set()
        assert [status for peer in (first, stays) for status, _, _ in await peer.answers()] == [200, 200]
        stays.protocol.connection_lost(None)
        assert in_hand(app) == (0, 0, 0)
        text = app.service.metrics.render().decode()
    assert 'rescade_unanswered_total{model="tiny",reason="cancelled"} 1.0' in text
    assert 'path="/predict",status="499"} 1.0' in text


async def test_a_connection_that_closes_before_its_answer_is_not_written_to() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate)) as (app, connect):
        peer = connect()
        peer.say(question(jpeg(SURE)))
        peer.wire.close()
        gate.opened.set()
        await until(lambda: in_hand(app) == (0, 0, 0))
    assert peer.wire.sent == b""


KEY = hashlib.sha256(b"right").hexdigest()
REFUSED: dict[str, tuple[bytes, dict[str, Any], int, str]] = {
    "an unknown option": (question(jpeg(0), "?colour=red"), {}, 400, "bad_request"),
    "a deadline that is none": (question(jpeg(0), X_Deadline_Ms="soon"), {}, 400, "bad_request"),
    "a deadline that has passed": (question(jpeg(0), X_Deadline_Ms="0.0001"), {}, 504, "deadline_exceeded"),
    "no key": (question(jpeg(0)), {"api_keys_sha256": (KEY,)}, 401, "unauthorized"),
    "half a JPEG": (question(photo(0)[:-40]), {}, 422, "bad_image"),
    "too many pixels": (question(jpeg(0, 16)), {"max_pixels": 200}, 413, "too_large"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_is_that_of_the_ordinary_way(case: str) -> None:
    data, settings, status, code = REFUSED[case]
    async with connections(FakeRuntime(TABLE), **settings) as (app, connect), client_of(app) as client:
        peer = connect()
        peer.say(data)
        [(found, headers, answer)] = await peer.answers()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        ordinary = await client.post(
            first.split()[1], content=body, headers=dict(line.split(": ", 1) for line in lines)
        )
        assert in_hand(app) == (0, 0, 0)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"]["message"] == ordinary.json()["error"]["message"]
    assert answer["error"]["request_id"] == headers["x-request-id"]


async def test_a_full_house_refuses_at_once_and_says_when_to_come_back() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate), max_in_flight=1) as (_, connect):
        inside, outside = connect(), connect()
        inside.say(question(jpeg(SURE)))
        outside.say(question(jpeg(SURE)))
        [(status, headers, answer)] = await outside.answers()
        gate.opened.set()
        assert (await inside.answers())[0][0] == 200
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "overloaded")


async def test_a_network_that_fails_is_told_of_as_an_error_of_the_server() -> None:
    gate = Gate()
    gate.broken = 0
    gate.opened.set()
    async with connections(FakeRuntime(TABLE, gate)) as (app, connect):
        peer = connect()
        peer.say(question(jpeg(SURE)))
        [(status, _, answer)] = await peer.answers()
        assert in_hand(app) == (0, 0, 0)
        assert 'rescade_inferences_total{model="tiny",outcome="fail"} 1.0' in app.service.metrics.render().decode()
    assert (status, answer["error"]["code"]) == (500, "stage_failed")


async def test_an_error_that_nobody_foresaw_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connections(FakeRuntime(TABLE)) as (app, connect):
        monkeypatch.setattr("server.direct.write", lambda *_: 1 / 0)
        peer = connect()
        peer.say(question(jpeg(SURE)))
        [(status, _, answer)] = await peer.answers()
        assert in_hand(app) == (0, 0, 0)
    assert (status, answer["error"]["code"]) == (500, "internal")
    assert "division" not in str(answer)


async def test_time_running_out_is_told_as_the_request_allows() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate)) as (_, connect):
        first, late = connect(), connect()
        first.say(question(jpeg(SURE)))
        await gate.someone_is_inside()
        late.say(question(jpeg(SURE), X_Deadline_Ms="50"))
        [(status, _, answer)] = await late.answers()
        gate.opened.set()
        await first.answers()
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")


async def test_the_more_urgent_question_is_answered_first() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate), max_batch=1) as (_, connect):
        first, *others = [connect() for _ in range(4)]
        first.say(question(jpeg(SURE)))
        await gate.someone_is_inside()
        order: list[str] = []
        for peer, query in zip(others, ("?priority=3", "", "?priority=1"), strict=True):
            peer.wire.write = lambda data, query=query: order.append(query)
            peer.say(question(jpeg(SURE), query))
        gate.opened.set()
        await until(lambda: len(order) == 3)
    assert order == ["?priority=1", "", "?priority=3"]


async def test_what_went_well_is_logged_at_debug_with_its_exits(caplog: pytest.LogCaptureFixture) -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        for level in (logging.INFO, logging.DEBUG):
            caplog.set_level(level, "server.requests")
            peer.say(question(jpeg(UNSURE)))
            await peer.answers()
    [record] = [record for record in caplog.records if record.name == "server.requests"]
    assert record.__dict__["fields"]["exits"] == [0, 0, 1]
    assert record.__dict__["fields"]["status"] == 200


async def test_large_bodies_are_not_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.direct.LIGHT_BYTES", len(jpeg(0)) - 1)
    monkeypatch.setattr("server.direct.Inquiry", None)
    assert predict.LIGHT_BYTES == 65536
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        peer.say(question(jpeg(0)))
        assert (await peer.answers())[0][0] == 200
