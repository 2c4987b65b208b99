"""The client for programs: what it repeats and when, how long it waits, and how every failure looks from outside."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.client import AsyncClient, Effects
from bench.errors import AskedWrongly, BadAnswer, Closed, Dropped, Refused, TimedOut, Unreachable
from bench.question import Image
from bench.retry import Retry
from server.multipart import read_parts
from tests.bench.fake_server import (
    BUNDLE,
    CERTIFICATE,
    Handler,
    Request,
    certified,
    prediction,
    refusal,
    reply,
    serving,
)

BUSY = refusal(503, "overloaded", "try later", "Retry-After: 2\r\n")
OK = reply(prediction())


class World:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self.slept: list[float] = []
        self.effects = Effects(now=lambda: self.time_s, sleep=self.sleep, jitter=lambda: 0.0)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time_s += seconds
        await asyncio.sleep(0)


def answering(*answers: bytes, into: list[Request] | None = None) -> Handler:
    """One answer after the other, the last for ever; an empty one ends the connection."""
    left = itertools.chain(answers, itertools.repeat(answers[-1]))

    async def handler(request: Request) -> bytes:
        if into is not None:
            into.append(request)
        return next(left)

    return handler


def labelled(request: Request) -> bytes:
    """Each image of a form is its own label."""
    parts = read_parts(request.headers["content-type"], request.body, 99) if b"--" in request.body else None
    labels = [part.data.decode() for part in parts] if parts else [request.body.decode()]
    found = [prediction()["predictions"][0] | {"label": label} for label in labels]
    return reply(prediction() | {"predictions": found})


async def test_everything_asked_for_is_sent() -> None:
    seen: list[Request] = []
    async with serving(answering(OK, into=seen)) as url, AsyncClient(url, api_key="secret") as client:
        await client.predict(b"x", top_k=3, deadline_ms=250, allow_truncated=True, request_id="r-1")
    assert seen[0].query == {"top_k": "3", "allow_truncated": "true"}
    named = {name: seen[0].headers[name] for name in ("x-api-key", "x-deadline-ms", "x-request-id")}
    assert named == {"x-api-key": "secret", "x-deadline-ms": "250", "x-request-id": "r-1"}


async def test_what_is_not_asked_for_is_not_sent() -> None:
    seen: list[Request] = []
    async with serving(answering(OK, into=seen)) as url, AsyncClient(url) as client:
        answer = await client.predict(b"x")
    assert (seen[0].query, answer.best.label) == ({}, "cat")
    assert not {"x-api-key", "x-deadline-ms", "x-request-id"} & seen[0].headers.keys()


async def test_a_busy_server_is_asked_again_when_it_said() -> None:
    seen: list[Request] = []
    world = World()
    async with serving(answering(BUSY, BUSY, OK, into=seen)) as url, AsyncClient(url, effects=world.effects) as client:
        assert (await client.predict(b"x")).best.label == "cat"
    assert world.slept == [2.0, 2.0]
    assert [request.body for request in seen] == [b"x"] * 3


async def test_a_connection_that_ended_silently_is_followed_by_another() -> None:
    world = World()
    async with serving(answering(b"", b"", OK)) as url, AsyncClient(url, effects=world.effects) as client:
        await client.predict(b"x")
    assert world.slept == [0.1, 0.2]


async def test_a_server_that_is_not_there_is_tried_as_often_as_was_said() -> None:
    world = World()
    async with serving(answering(OK)) as url:
        pass
    async with AsyncClient(url, retry=Retry(attempts=3), effects=world.effects) as client:
        with pytest.raises(Unreachable, match="nobody listens"):
            await client.predict(b"x")
    assert world.slept == [0.1, 0.2]


@pytest.mark.parametrize(
    "answer", [refusal(400, "bad_request", "no"), refusal(503, "overloaded", "no hint"), b"SSH-2\r\n"]
)
async def test_what_another_try_cannot_mend_is_told_at_once(answer: bytes) -> None:
    seen: list[Request] = []
    async with serving(answering(answer, OK, into=seen)) as url, AsyncClient(url, effects=World().effects) as client:
        with pytest.raises((Refused, BadAnswer)):
            await client.predict(b"x")
    assert len(seen) == 1


async def test_the_last_refusal_is_what_the_caller_gets() -> None:
    async with serving(answering(BUSY)) as url, AsyncClient(url, effects=World().effects) as client:
        with pytest.raises(Refused, match="try later") as caught:
            await client.predict(b"x")
    assert (caught.value.code, caught.value.request_id, caught.value.retry_after_s) == ("overloaded", "7", 2.0)


async def test_each_attempt_has_what_is_left_of_the_deadline() -> None:
    seen: list[Request] = []
    world = World()
    async with serving(answering(BUSY, into=seen)) as url, AsyncClient(url, effects=world.effects) as client:
        with pytest.raises(Refused):
            await client.predict(b"x", deadline_ms=5000)
    assert [request.headers["x-deadline-ms"] for request in seen] == ["5000", "3000", "1000"]


async def test_a_wait_beyond_the_whole_time_is_not_begun() -> None:
    world = World()
    async with serving(answering(BUSY)) as url, AsyncClient(url, timeout_s=3, effects=world.effects) as client:
        with pytest.raises(Refused):
            await client.predict(b"x")
    assert world.slept == [2.0]


async def test_no_answer_in_the_whole_time_is_a_timeout() -> None:
    async def never(request: Request) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(never) as url, AsyncClient(url) as client:
        with pytest.raises(TimedOut, match=r"within 0\.02 s"):
            await client.predict(b"x", timeout_s=0.02)


async def test_a_kept_connection_that_the_server_has_closed_is_replaced_unnoticed() -> None:
    seen: list[Request] = []
    world = World()
    async with serving(answering(OK, b"", OK, into=seen)) as url, AsyncClient(url, effects=world.effects) as client:
        await client.predict(b"x")
        await client.predict(b"x")
    assert ([request.connection for request in seen], world.slept) == ([0, 0, 1], [])


async def test_several_images_are_answered_in_order(tmp_path: Path) -> None:
    (tmp_path / "dog.png").write_bytes(b"dog")

    async def handler(request: Request) -> bytes:
        return labelled(request)

    async with serving(handler) as url, AsyncClient(url) as client:
        answer = await client.predict([b"cat", tmp_path / "dog.png"])
    assert [found.label for found in answer.predictions] == ["cat", "dog"]


async def test_an_answer_for_fewer_images_is_a_bad_one() -> None:
    async with serving(answering(OK)) as url, AsyncClient(url) as client:
        with pytest.raises(BadAnswer, match="1 predictions to 2 images"):
            await client.predict(np.zeros((2, 3, 4, 4), np.float32))


async def test_many_images_stream_in_order_some_at_a_time() -> None:
    inside, most = [0], [0]

    async def handler(request: Request) -> bytes:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        for _ in range(7 if b"\r\n0\r\n" in request.body else 3):
            await asyncio.sleep(0)
        inside[0] -= 1
        return labelled(request)

    images = [str(number).encode() for number in range(11)]
    async with serving(handler) as url, AsyncClient(url) as client:
        labels = [found.label async for found in client.predict_many(images, batch_size=2, concurrency=3)]
    assert labels == [str(number) for number in range(11)]
    assert most[0] <= 3


async def test_many_images_end_at_the_first_failure_after_what_came_before() -> None:
    def images() -> Iterator[Image]:
        yield from (b"a", b"b", Path("nowhere.png"), Path("nowhere either.png"))

    async def handler(request: Request) -> bytes:
        return labelled(request)

    async with serving(handler) as url, AsyncClient(url) as client:
        found = client.predict_many(images(), batch_size=1, concurrency=4)
        assert [(await anext(found)).label for _ in "ab"] == ["a", "b"]
        with pytest.raises(AskedWrongly, match=r"nowhere\.png"):
            await anext(found)


@pytest.mark.parametrize(
    ("answer", "ready"), [(reply({"status": "ready"}), True), (refusal(503, "not_ready", "warming up"), False)]
)
async def test_a_server_says_whether_it_is_ready(answer: bytes, ready: bool) -> None:
    async with serving(answering(answer)) as url, AsyncClient(url) as client:
        assert await client.ready() is ready


async def test_neither_yes_nor_no_is_an_error() -> None:
    async with serving(answering(reply({}, 404))) as url, AsyncClient(url) as client:
        with pytest.raises(Refused, match="HTTP 404"):
            await client.ready()
        with pytest.raises(Refused, match="HTTP 404"):
            await client.wait_until_ready(5)


async def test_health_and_bundle_are_typed() -> None:
    async def handler(request: Request) -> bytes:
        return reply({"status": "live"} if request.path == "/health/live" else BUNDLE)

    async with serving(handler) as url, AsyncClient(url) as client:
        assert (await client.health()).status == "live"
        assert (await client.bundle()).labels == ("cat", "dog")


async def test_waiting_ends_as_soon_as_the_server_is_ready() -> None:
    world = World()
    answers = (b"", refusal(503, "not_ready", "warming up"), reply({"status": "ready"}))
    async with serving(answering(*answers)) as url, AsyncClient(url, effects=world.effects) as client:
        await client.wait_until_ready(5)
    assert world.slept == [0.2, 0.2]


async def test_waiting_in_vain_says_what_was_last_seen() -> None:
    world = World()
    warming = answering(refusal(503, "not_ready", "warming up"))
    async with serving(warming) as url, AsyncClient(url, effects=world.effects) as client:
        with pytest.raises(TimedOut, match="was not ready within 1 s: HTTP 503: warming up"):
            await client.wait_until_ready(1)
    assert sum(world.slept) <= 1


async def test_a_client_that_was_closed_asks_nothing() -> None:
    async with serving(answering(OK)) as url:
        async with AsyncClient(url) as client:
            await client.predict(b"x")
        with pytest.raises(Closed):
            await client.predict(b"x")


@pytest.mark.parametrize("verify", [ssl.create_default_context(cafile=CERTIFICATE), False])
async def test_https_is_verified_as_one_likes(verify: bool | ssl.SSLContext) -> None:
    async with serving(answering(OK), certified()) as url, AsyncClient(url, verify=verify) as client:
        assert (await client.predict(b"x")).best.label == "cat"


async def test_a_certificate_that_nobody_vouches_for_is_refused_at_once() -> None:
    world = World()
    async with serving(answering(OK), certified()) as url, AsyncClient(url, effects=world.effects) as client:
        with pytest.raises(Unreachable, match="certificate"):
            await client.predict(b"x")
    assert world.slept == []


@pytest.mark.parametrize("given", [{"connections": 0}, {"api_key": "a\r\nb"}, {"url": "ftp://here"}])
def test_a_client_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(AskedWrongly):
        AsyncClient(**{"url": "http://here", **given})


async def test_an_answer_cut_in_the_middle_is_not_asked_for_again() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> tuple[bytes, ...]:
        seen.append(request)
        return OK[:20], b""

    async with serving(handler) as url, AsyncClient(url, effects=World().effects) as client:
        with pytest.raises(Dropped):
            await client.predict(b"x")
    assert len(seen) == 1
