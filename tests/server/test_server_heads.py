"""Heads that were read before: found again byte for byte, and never taken for something else."""

from __future__ import annotations

from typing import Any

import pytest

from server import heads
from server.heads import Head, Heads, read_head
from tests.builders import FakeRuntime
from tests.server.test_server_engine import TABLE, Gate
from tests.server.wire import Peer, connections, jpeg, question

HEADERS = ((b"content-type", b"image/jpeg"), (b"content-length", b"4"))
HEAD = Head(HEADERS, dict(HEADERS), b"", 4, True)


def test_a_head_is_found_again_where_its_body_is_whole() -> None:
    known = Heads()
    known.learn(b"POST\r\n\r\nbody", HEAD)
    assert known.find(b"POST\r\n\r\nBODY") == (HEAD, b"BODY")
    for other in (
        b"POST\r\n\r\nbod",
        b"POST\r\n\r\nbodyPOST",
        b"POSt\r\n\r\nbody",
        b"POST\r\nbody",
        b"",
        b"POST\r\n\r\n",
    ):
        assert known.find(other) is None


@pytest.mark.parametrize("data", [b"POST\r\n\r\nbodyPOST\r\n\r\nbody", b"POST\n\nbo\r\n\r\ndy", b"body", b""])
def test_a_read_that_is_not_one_whole_question_teaches_nothing(data: bytes) -> None:
    known = Heads()
    known.learn(data, HEAD)
    assert known.find(data) is None


def test_a_head_is_not_taken_for_that_of_a_question_behind_it_in_the_same_read() -> None:
    known = Heads()
    known.learn(b"POST one\r\n\r\nbodyPOST two\r\n\r\nbody", HEAD)
    assert known.find(b"POST one\r\n\r\nbody") is None


def test_a_head_with_an_id_of_its_own_is_not_remembered() -> None:
    known, own = Heads(), (*HEADERS, (b"x-request-id", b"7"))
    known.learn(b"POST\r\n\r\nbody", Head(own, dict(own), b"", 4, True))
    assert known.find(b"POST\r\n\r\nbody") is None


def test_a_long_head_is_not_remembered() -> None:
    known, data = Heads(), b"a" * heads.LONGEST + b"\r\n\r\nbody"
    known.learn(data, HEAD)
    assert known.find(data) is None


def test_no_more_heads_are_kept_than_have_room() -> None:
    known = Heads()
    for number in range(heads.MOST + 1):
        known.learn(b"%d\r\n\r\nbody" % number, HEAD)
    assert known.find(b"%d\r\n\r\nbody" % heads.MOST) is not None
    assert len(known._known) == 1


@pytest.mark.parametrize("length", [b"", b"-1", b"+4", b"4.0", b"11", b"9" * 5000, b"\xb2"])
def test_a_length_that_is_none_or_too_much_is_for_others_to_judge(length: bytes) -> None:
    assert read_head(((b"content-type", b"image/jpeg"), (b"content-length", length)), b"", True, 10) is None


async def test_a_question_that_is_asked_again_is_answered_again_without_being_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def read_and_count(*given: Any) -> Head | None:
        seen.append(given)
        return read_head(*given)

    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        monkeypatch.setattr("server.connection.read_head", read_and_count)
        for row in (0, 0, 2, 2, 0):
            body = jpeg(row)
            peer.say(question(body + bytes(1000 - len(body)), "?top_k=2"))
            [(status, _, answer)] = await peer.answers()
            assert (status, answer["predictions"][0]["stage"], len(answer["predictions"][0]["top"])) == (200, row, 2)
    assert len(seen) == 1


async def test_connections_share_what_they_know_and_nothing_else() -> None:
    async with connections(FakeRuntime(TABLE), api_keys_sha256=()) as (app, connect):
        first, second = connect(), connect()
        for peer in (first, second):
            peer.say(question(jpeg(0), Connection="close"))
            [(status, headers, _)] = await peer.answers()
            assert (status, headers["connection"], peer.wire.closed) == (200, "close", True)
        text = app.service.metrics.render().decode()
    assert 'rescade_requests_total{method="POST",path="/predict",status="200"} 2.0' in text


async def test_a_known_head_with_a_body_that_is_no_jpeg_goes_the_ordinary_way() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer, body = connect(), jpeg(0)
        statuses = []
        for data in (body, b"GIF" + body[3:], body):
            peer.say(question(data, kind="application/octet-stream"))
            statuses += [status for status, _, _ in await peer.answers()]
    assert statuses == [200, 422, 200]


async def test_a_known_head_inside_another_body_is_part_of_that_body() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer, inner = connect(), question(jpeg(0))
        peer.say(inner)
        await peer.answers()
        outer = question(b" " * 10 + inner)
        peer.say(outer[: -len(inner)])
        peer.say(inner)
        [(status, _, answer)] = await peer.answers()
    assert (status, answer["error"]["code"]) == (422, "bad_image")


async def test_a_known_head_inside_another_head_is_part_of_that_head() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer, inner = connect(), question(jpeg(0))
        peer.say(inner)
        await peer.answers()
        peer.say(b"GET /health/live HTTP/1.1\r\nNote: ")
        peer.say(inner)
        [(status, _, answer)] = await peer.answers()
    assert (status, "predictions" in answer) == (200, False)


async def test_a_known_head_behind_a_question_in_hand_waits_for_its_turn() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        peer = connect()
        for _ in range(2):
            peer.say(question(jpeg(2)))
            peer.say(question(jpeg(0)))
            found = await peer.answers(2)
            assert [answer["predictions"][0]["stage"] for _, _, answer in found] == [2, 0]


async def test_a_body_over_the_limit_of_bodies_is_refused_however_light_it_is() -> None:
    async with connections(FakeRuntime(TABLE), max_body_bytes=100) as (_, connect):
        peer = connect()
        peer.say(question(jpeg(0)))
        [(status, _, answer)] = await peer.answers()
    assert (status, answer["error"]["code"]) == (413, "too_large")


class Clock:
    """A loop, as far as it tells the time and sets timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, ring: Any) -> Clock:
        self.timers.append((self.now + seconds, ring))
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def ring(self, peer: Peer) -> bool:
        """Go on to the only timer, and say whether its connection closed."""
        [(self.now, ring)] = self.timers
        self.timers.clear()
        ring()
        return peer.wire.closed


async def test_a_connection_is_closed_after_a_silence_and_not_before() -> None:
    async with connections(FakeRuntime(TABLE), keep_alive_s=30) as (_, connect):
        peer, clock = connect(), Clock()
        peer.protocol.loop = clock
        for at in (0, 10, 25):
            clock.now = at
            peer.say(question(jpeg(0)))
            await peer.answers()
        assert [when for when, _ in clock.timers] == [30]
        assert (clock.ring(peer), clock.now) == (False, 30)
        assert (clock.ring(peer), clock.now) == (True, 55)
    assert clock.timers == []


async def test_a_question_in_hand_is_no_silence() -> None:
    gate = Gate()
    async with connections(FakeRuntime(TABLE, gate), keep_alive_s=30) as (_, connect):
        peer, clock = connect(), Clock()
        peer.protocol.loop = clock
        gate.opened.set()
        peer.say(question(jpeg(0)))
        await peer.answers()
        gate.opened.clear()
        for data in (question(jpeg(0)), question(jpeg(1))[:20]):
            peer.say(data)
        assert (clock.ring(peer), clock.timers) == (False, [])
        gate.opened.set()
        await peer.answers()
        assert [when for when, _ in clock.timers] == [60]


async def test_a_connection_that_is_lost_stops_its_clock() -> None:
    async with connections(FakeRuntime(TABLE)) as (_, connect):
        for fault in (None, ConnectionResetError()):
            peer, clock = connect(), Clock()
            peer.protocol.loop = clock
            peer.say(question(jpeg(0)))
            await peer.answers()
            peer.protocol.connection_lost(fault)
            assert clock.timers == []
