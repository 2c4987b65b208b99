"""A line between two processes: calls, answers, refusals, and what happens when one end goes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from cascade.errors import BundleError, NotFound, ServiceError
from server.line import Line, Lost


async def echo(command: Any) -> Any:
    match command:
        case "missing":
            raise NotFound("there is none")
        case "broken":
            raise BundleError("manifest.json", "secret")
        case "never":
            await asyncio.Event().wait()
    return command


@asynccontextmanager
async def line_to(handle: Callable[[Any], Awaitable[object]]) -> AsyncIterator[tuple[Line, Connection, asyncio.Event]]:
    """A line, the raw other end of it once that is needed, and the event of its loss."""
    ours, theirs = multiprocessing.Pipe()
    lost = [asyncio.Event(), asyncio.Event()]
    line = Line(ours, echo, lost[0].set)
    Line(theirs, handle, lost[1].set)
    yield line, theirs, lost[0]
    hang_up(ours)
    async with asyncio.timeout(10):
        await lost[0].wait()
        await lost[1].wait()


def hang_up(pipe: Connection) -> None:
    """What the end of a process does to its pipe."""
    if not pipe.closed:
        with socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


async def test_calls_are_answered_each_with_its_own_answer() -> None:
    async with line_to(echo) as (line, _, _):
        assert await asyncio.gather(*(line.call(number) for number in range(20))) == list(range(20))


async def test_a_large_message_arrives_whole() -> None:
    async with line_to(echo) as (line, _, _):
        assert await line.call(b"x" * 3_000_000) == b"x" * 3_000_000


async def test_a_refusal_is_raised_where_the_call_was_made() -> None:
    async with line_to(echo) as (line, _, _):
        with pytest.raises(NotFound, match="there is none"):
            await line.call("missing")


async def test_a_failure_is_logged_where_it_happened_and_told_without_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with line_to(echo) as (line, _, _):
        with pytest.raises(ServiceError, match="the log says why"):
            await line.call("broken")
    assert [record.getMessage() for record in caplog.records] == ["command failed"]


async def test_whoever_waits_for_an_end_that_goes_is_told() -> None:
    async with line_to(echo) as (line, theirs, lost):
        waiting = asyncio.create_task(line.call("never"))
        await line.call("there")
        hang_up(theirs)
        with pytest.raises(Lost):
            await waiting
        await lost.wait()
        with pytest.raises(Lost):
            await line.call("anybody")


async def test_an_answer_that_nobody_waits_for_any_more_is_dropped() -> None:
    opened = asyncio.Event()

    async def slow(command: Any) -> Any:
        await opened.wait() if command == "slow" else None
        return command

    async with line_to(slow) as (line, _, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await line.call("slow")
        opened.set()
        assert await line.call("quick") == "quick"
