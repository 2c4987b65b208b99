"""The asker: what it sends, what it makes of answers, how it shares connections and keeps deadlines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench.asker import Asker
from bench.errors import BadAnswer, Dropped, Refused, TimedOut
from tests.bench.fake_server import BUNDLE, Handler, Request, image, prediction, refusal, reply, serving


def recording(into: list[Request], answer: bytes | None = None) -> Handler:
    async def handler(request: Request) -> bytes:
        into.append(request)
        return answer or reply(prediction())

    return handler


async def never(request: Request) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def test_an_image_is_posted_as_it_is() -> None:
    seen: list[Request] = []
    async with serving(recording(seen)) as url, Asker(url) as asker:
        await asker.predict(b"\xff\xd8", "image/jpeg")
    (request,) = seen
    assert (request.method, request.path, request.query) == ("POST", "/predict", {})
    assert (request.body, request.headers["content-type"]) == (b"\xff\xd8", "image/jpeg")
    assert url == f"http://{request.headers['host']}"


async def test_options_travel_in_the_query() -> None:
    seen: list[Request] = []
    async with serving(recording(seen)) as url, Asker(url + "/models/a") as asker:
        await asker.predict(b"x", threshold=1e9, max_stage=0, top_k=3)
    assert seen[0].path == "/models/a/predict"
    assert seen[0].query == {"threshold": "1000000000.0", "max_stage": "0", "top_k": "3"}
    assert seen[0].headers["content-type"] == "application/octet-stream"


async def test_an_answer_is_typed() -> None:
    document = prediction("dog", stage=1, energy=0.75) | {"a later": "key"}
    async with serving(recording([], reply(document))) as url, Asker(url, clock=lambda: 5.0) as asker:
        answer = await asker.predict(b"x")
    assert (answer.model, answer.version, answer.threshold, answer.received_at) == ("pets", "1", 0.5, 5.0)
    best = answer.best
    assert (best.label, best.index, best.score, best.stage, best.energy) == ("dog", 1, 0.9, 1, 0.75)


async def test_a_bundle_is_read_as_far_as_it_matters() -> None:
    async with serving(recording([], reply(BUNDLE))) as url, Asker(url) as asker:
        bundle = await asker.bundle()
    assert (bundle.name, [stage.macs for stage in bundle.stages]) == ("pets", [100, 300])
    assert bundle.labels == ("cat", "dog")


@pytest.mark.parametrize("document", [{}, [], prediction() | {"predictions": []}, prediction(stage=-1)])
async def test_an_answer_of_another_shape_is_a_bad_answer(document: Any) -> None:
    async with serving(recording([], reply(document))) as url, Asker(url) as asker:
        with pytest.raises(BadAnswer, match="POST /predict did not answer as agreed"):
            await asker.predict(b"x")


@pytest.mark.parametrize("body", [b"<html>", b""])
async def test_an_answer_that_is_not_json_is_a_bad_answer(body: bytes) -> None:
    whole = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with serving(recording([], whole)) as url, Asker(url) as asker:
        with pytest.raises(BadAnswer):
            await asker.predict(b"x")
        with pytest.raises(BadAnswer, match="GET /bundle"):
            await asker.bundle()


async def test_a_refusal_carries_the_servers_words() -> None:
    async with serving(recording([], refusal(503, "overloaded", "try later"))) as url, Asker(url) as asker:
        with pytest.raises(Refused, match="HTTP 503: try later") as caught:
            await asker.predict(b"x")
    assert (caught.value.status, caught.value.code, caught.value.kind) == (503, "overloaded", "503 overloaded")


@pytest.mark.parametrize("document", [{"detail": "Not Found"}, {"error": {}}])
async def test_a_refusal_in_another_shape_still_has_its_status(document: Any) -> None:
    async with serving(recording([], reply(document, 404))) as url, Asker(url) as asker:
        with pytest.raises(Refused, match="gave no reason") as caught:
            await asker.predict(b"x")
    assert caught.value.kind == "404"


async def test_requests_one_after_another_share_a_connection() -> None:
    seen: list[Request] = []
    async with serving(recording(seen)) as url, Asker(url, connections=4) as asker:
        for _ in range(3):
            await asker.predict(image())
    assert {request.connection for request in seen} == {0}


async def test_requests_at_once_share_the_connections_there_are() -> None:
    together, most, inside = [0], [0], asyncio.Event()

    async def handler(request: Request) -> bytes:
        together[0] += 1
        most[0] = max(most[0], together[0])
        if together[0] == 2:
            inside.set()
        await inside.wait()
        together[0] -= 1
        return reply(prediction())

    async with serving(handler) as url, Asker(url, connections=2) as asker:
        answers = await asyncio.gather(*(asker.predict(image()) for _ in range(8)))
    assert (len(answers), most[0]) == (8, 2)


async def test_the_connection_that_rested_longest_goes_first() -> None:
    seen: list[Request] = []
    both = asyncio.Barrier(2)

    async def handler(request: Request) -> bytes:
        seen.append(request)
        if len(seen) <= 2:
            await both.wait()
        return reply(prediction())

    async with serving(handler) as url, Asker(url, connections=2) as asker:
        await asyncio.gather(asker.predict(b""), asker.predict(b""))
        for _ in range(4):
            await asker.predict(b"")
    turns = [request.connection for request in seen[2:]]
    assert turns[:2] == turns[2:]
    assert sorted(turns[:2]) == [0, 1]


async def test_a_connection_the_server_dropped_while_idle_is_replaced() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> tuple[bytes, ...]:
        seen.append(request)
        return reply(prediction()), b""

    async with serving(handler) as url, Asker(url) as asker:
        await asker.predict(image())
        for _ in range(50):  # loopback needs no time, only turns of the loop
            await asyncio.sleep(0)
        await asker.predict(image())
    assert [request.connection for request in seen] == [0, 1]


async def test_a_connection_the_server_wants_closed_is_replaced() -> None:
    seen: list[Request] = []
    answer = reply(prediction(), headers="Connection: close\r\n")
    async with serving(recording(seen, answer)) as url, Asker(url) as asker:
        await asker.predict(image())
        await asker.predict(image())
    assert [request.connection for request in seen] == [0, 1]


async def test_a_connection_that_dies_under_a_request_is_an_error_and_no_second_try() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> bytes:
        seen.append(request)
        return b""

    async with serving(handler) as url, Asker(url) as asker:
        with pytest.raises(Dropped):
            await asker.predict(image())
    assert len(seen) == 1


async def test_a_deadline_is_told_to_the_server() -> None:
    seen: list[Request] = []
    async with serving(recording(seen)) as url, Asker(url) as asker:
        await asker.predict(image(), deadline_ms=250.0)
    assert seen[0].headers["x-deadline-ms"] == "250"


async def test_no_answer_in_time_is_a_timeout() -> None:
    async with serving(never) as url, Asker(url, timeout_s=0.02) as asker:
        with pytest.raises(TimedOut, match=r"within 0\.02 s"):
            await asker.predict(image())


async def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    late = asyncio.Event()

    async def handler(request: Request) -> bytes:
        if request.connection == 0:
            await late.wait()
            return reply(prediction("dog"))
        return reply(prediction("cat"))

    async with serving(handler) as url, Asker(url) as asker:
        with pytest.raises(TimedOut):
            await asker.predict(image(), timeout_s=0.02)
        late.set()
        assert (await asker.predict(image())).best.label == "cat"


async def test_waiting_for_a_connection_counts_against_the_deadline() -> None:
    async with serving(never) as url, Asker(url, connections=1, timeout_s=60) as asker:
        first = asyncio.ensure_future(asker.predict(image()))
        await asyncio.sleep(0)
        with pytest.raises(TimedOut):
            await asker.predict(image(), timeout_s=0.02)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
