"""Who is let in, and who is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from cascade.errors import Overloaded, SlowRequest, TooLarge, UnsupportedType
from server.intake import Guest, Intake

LAST: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}


def intake(requests: int = 9, body: int = 100, bodies: int = 150, timeout_s: float = 30) -> Intake:
    return Intake(requests, body, bodies, timeout_s)


def sending(*parts: bytes, then: dict[str, Any] | None = None) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A `receive` that gives these parts, then one message more, then nothing for ever."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    incoming = iter([*messages, *([then] if then else [])])

    async def receive() -> dict[str, Any]:
        for message in incoming:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def wait_for_ever(guest: Guest) -> None:
    """As a request does whose body is read."""
    guest.reading = False
    await asyncio.Event().wait()


async def test_a_body_comes_in_parts_and_is_counted_until_its_request_ends() -> None:
    house = intake()
    with house.guest(sending(b"ab", b"cd", then=LAST)) as guest:
        assert await house.read(guest, "") == b"abcd"
        assert (len(house), house._buffered) == (1, 4)
    assert (len(house), house._buffered) == (0, 0)


async def test_a_body_is_refused_by_the_length_it_announces_or_by_the_one_it_has() -> None:
    house = intake(body=3)
    for announced, receive in (("4", sending()), ("9" * 30, sending()), ("", sending(b"ab", b"cd"))):
        with pytest.raises(TooLarge, match="larger than 3 bytes"), house.guest(receive) as guest:
            await house.read(guest, announced)


async def test_all_bodies_together_have_a_limit() -> None:
    house = intake()
    with house.guest(sending(b"x" * 90, then=LAST)) as first:
        await house.read(first, "90")
        with pytest.raises(Overloaded, match="memory"), house.guest(sending(b"x" * 90, then=LAST)) as second:
            await house.read(second, "90")
    assert house._buffered == 0


async def test_a_full_house_lets_nobody_in() -> None:
    house = intake(requests=1)
    with house.guest(sending()):
        with pytest.raises(Overloaded, match="1 requests are in hand"):
            house.guest(sending()).__enter__()
        assert len(house) == 1


async def test_a_compressed_body_is_refused() -> None:
    house = intake()
    with pytest.raises(UnsupportedType), house.guest(sending(then=LAST)) as guest:
        await house.read(guest, "", "gzip")


async def test_a_body_that_never_comes_ends_its_request() -> None:
    house = intake(timeout_s=0.02)
    with pytest.raises(SlowRequest), house.guest(sending(b"a")) as guest:
        await house.read(guest, "")
    assert len(house) == 0


async def test_a_client_that_hangs_up_ends_its_request_in_the_body_or_after_it() -> None:
    house = intake()
    gone = {"type": "http.disconnect"}
    with pytest.raises(ClientDisconnect), house.guest(sending(b"a", then=gone)) as guest:
        await house.read(guest, "")
    with pytest.raises(ClientDisconnect), house.guest(sending(b"odd", then=gone)) as guest:
        await wait_for_ever(guest)
    assert len(house) == 0


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    house, entered = intake(), asyncio.Event()

    async def stay() -> None:
        with house.guest(sending(then=LAST)):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stay())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(house) == 0
