"""The pool: connections are kept while they are fresh, replaced when they are not, and gone when it is closed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import pytest
import uvloop

from bench.address import parse
from bench.errors import Closed, Dropped, Unreachable
from bench.pool import Pool
from tests.bench.fake_server import CERTIFICATE, Handler, Request, certified, reply, serving

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


def recording(into: list[Request], dies: Callable[[Request], bool] = lambda _: False) -> Handler:
    """Answers, but ends the connection where `dies` says so, with no byte sent."""

    async def handler(request: Request) -> bytes:
        into.append(request)
        return b"" if dies(request) else reply({})

    return handler


def second_on_its_connection(seen: list[Request]) -> Callable[[Request], bool]:
    return lambda last: [request.connection for request in seen].count(last.connection) == 2


async def test_a_request_that_met_a_stale_connection_goes_out_once_more_on_a_new_one() -> None:
    seen: list[Request] = []
    async with serving(recording(seen, second_on_its_connection(seen))) as url:
        pool = Pool(parse(url), resend=True)
        statuses = [(await pool.exchange(GET)).status for _ in range(2)]
        await pool.close()
    assert statuses == [200, 200]
    assert [request.connection for request in seen] == [0, 0, 1]


async def test_a_measurement_sees_the_stale_connection() -> None:
    seen: list[Request] = []
    async with serving(recording(seen, second_on_its_connection(seen))) as url:
        pool = Pool(parse(url))
        await pool.exchange(GET)
        with pytest.raises(Dropped):
            await pool.exchange(GET)
    assert len(seen) == 2


async def test_a_new_connection_that_dies_is_no_stale_one() -> None:
    seen: list[Request] = []
    async with serving(recording(seen, lambda _: True)) as url:
        with pytest.raises(Dropped) as caught:
            await Pool(parse(url), resend=True).exchange(GET)
    assert caught.value.silent
    assert len(seen) == 1


async def test_a_request_whose_answer_had_begun_is_not_sent_again() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> tuple[bytes, ...]:
        seen.append(request)
        return (reply({}),) if len(seen) == 1 else (b"HTTP/1.1 200", b"")

    async with serving(handler) as url:
        pool = Pool(parse(url), resend=True)
        await pool.exchange(GET)
        with pytest.raises(Dropped) as caught:
            await pool.exchange(GET)
    assert not caught.value.silent
    assert len(seen) == 2


async def test_a_connection_that_rested_too_long_is_not_used_again() -> None:
    seen: list[Request] = []
    now = [0.0]
    async with serving(recording(seen)) as url:
        pool = Pool(parse(url), keep_alive_s=5.0, clock=lambda: now[0])
        for now[0] in (0.0, 5.0, 10.1):
            await pool.exchange(GET)
        await pool.close()
    assert [request.connection for request in seen] == [0, 0, 1]


async def test_a_closed_pool_sends_nothing() -> None:
    seen: list[Request] = []
    async with serving(recording(seen)) as url:
        pool = Pool(parse(url))
        await pool.exchange(GET)
        await pool.close()
        with pytest.raises(Closed, match="is closed"):
            await pool.exchange(GET)
    assert len(seen) == 1


async def test_a_pool_closed_under_a_request_lets_the_answer_come_and_keeps_nothing() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> bytes:
        asked.set()
        await closed.wait()
        return reply({})

    async with serving(handler) as url:
        pool = Pool(parse(url))
        answer = asyncio.ensure_future(pool.exchange(GET))
        await asked.wait()
        await pool.close()
        closed.set()
        assert (await answer).status == 200
        assert not pool._idle


async def test_https_needs_a_certificate_that_is_trusted() -> None:
    seen: list[Request] = []
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    async with serving(recording(seen), certified()) as url:
        pool = Pool(parse(url), tls=trusting)
        statuses = [(await pool.exchange(GET)).status for _ in range(2)]
        await pool.close()
        with pytest.raises(Unreachable, match="certificate") as caught:
            await Pool(parse(url)).exchange(GET)
    assert (statuses, [request.connection for request in seen]) == ([200, 200], [0, 0])
    assert caught.value.lasting


async def test_a_server_that_never_shakes_hands_is_unreachable_in_time() -> None:
    """One without TLS waits for the end of a head, and gets none."""
    async with serving(recording([])) as url:
        address = parse(url.replace("http://", "https://"))
        with pytest.raises(Unreachable, match="took too long") as caught:
            await Pool(address, connect_timeout_s=0.02).exchange(GET)
    assert not caught.value.lasting


def test_it_works_in_uvloops_loop_too() -> None:
    async def main() -> int:
        async with serving(recording([])) as url:
            pool = Pool(parse(url))
            response = await pool.exchange(GET)
            await pool.close()
            return response.status

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == 200
