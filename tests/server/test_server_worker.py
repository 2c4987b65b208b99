"""A worker, in this process, and a parent made of a pipe and a channel."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import cores
from server import worker as worker_module
from server.commands import Commit, Prepare, Up
from server.door import CLOSED, SPAWN, Place, Seat
from server.library import identity
from server.line import Line
from server.port import HANG_UP, PUBLIC
from server.workers import work
from tests.builders import encoded, random_photo, tiny_bundle
from tests.server.harness import settings_for_tests

PHOTO = encoded(random_photo())
ASK = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(PHOTO)}\r\n\r\n"


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANG_UP}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class FakeParent:
    """Speaks to one worker, from a thread of its own, and ends by going away."""

    def __init__(self, script: Callable[[FakeParent], Awaitable[None]], core: int | None = None) -> None:
        self.seat, (self.pipe, theirs) = Seat(), SPAWN.Pipe()
        self.place = Place(theirs, self.seat.theirs, self.seat.counts, core)
        self.said: list[Any] = []
        self._script = script

    def run(self, **settings: Any) -> None:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        thread.start()
        try:
            work(settings_for_tests(**settings), self.place)
        finally:
            self.seat.theirs.close()
            thread.join(20)

    async def _run(self) -> None:
        self.up, self.leaving, lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.line = Line(self.pipe, self._hear, lost.set)
        try:
            async with asyncio.timeout(20):
                await self.up.wait()
                await self._script(self)
        finally:
            with socket.socket(fileno=os.dup(self.pipe.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
            assert self.seat.leave() == []
            await lost.wait()

    async def _hear(self, message: Any) -> None:
        self.said.append(message)
        (self.up if isinstance(message, Up) else self.leaving).set()

    async def open_tiny(self) -> None:
        bundle = tiny_bundle()
        assert await self.line.call(Prepare((bundle,))) == {}
        await self.line.call(Commit((identity(bundle),), {}))

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        assert self.seat.hand(PUBLIC, theirs)
        ours.settimeout(10)
        return ours


@pytest.mark.usefixtures("logging_as_it_was")
def test_it_serves_what_it_is_given_on_the_connections_it_is_given_and_ends_with_its_parent() -> None:
    answers: list[bytes] = []

    async def script(parent: FakeParent) -> None:
        with parent.connect() as early:
            early.sendall(ASK.encode() + PHOTO)
            answers.append(await asyncio.to_thread(early.recv, 65536))
            await parent.open_tiny()
            early.sendall(ASK.encode() + PHOTO)
            answers.append(await asyncio.to_thread(early.recv, 65536))
        while parent.seat.counts[CLOSED] < 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)

    parent = FakeParent(script)
    parent.run()
    assert [answer.split(b"\r\n")[0] for answer in answers] == [
        b"HTTP/1.1 503 Service Unavailable",
        b"HTTP/1.1 200 OK",
    ]
    assert list(parent.seat.counts) == [1, 1]
    assert parent.said[0] == Up()


@pytest.mark.usefixtures("logging_as_it_was")
def test_it_answers_what_was_handed_over_before_the_channel_closed() -> None:
    answers: list[bytes] = []

    async def script(parent: FakeParent) -> None:
        await parent.open_tiny()
        os.kill(os.getpid(), signal.SIGINT)  # not for it
        os.kill(os.getpid(), signal.SIGHUP)  # nor this
        os.kill(os.getpid(), signal.SIGTERM)
        await parent.leaving.wait()
        with parent.connect() as late:
            late.sendall(ASK.encode() + PHOTO)
            parent.seat.channel.shutdown(socket.SHUT_WR)
            answers.append(await asyncio.to_thread(late.recv, 65536))

    FakeParent(script).run()
    assert answers[0].startswith(b"HTTP/1.1 200 OK")


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_parent_that_never_closes_the_channel_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "LAST_CALL_S", 0.01)

    async def script(parent: FakeParent) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await parent.leaving.wait()
        await asyncio.sleep(0.5)

    FakeParent(script).run()


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_client_that_does_not_speak_tls_is_hung_up_on_and_not_counted(keys: Path) -> None:
    async def script(parent: FakeParent) -> None:
        with parent.connect() as odd:
            odd.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while list(parent.seat.counts) != [1, 1]:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)
            parent.seat.release()
            assert await asyncio.to_thread(odd.recv, 65536) == b""

    FakeParent(script).run(tls_cert=keys / "cert.pem", tls_key=keys / "key.pem")


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_worker_that_has_a_core_keeps_to_it_once_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    core, main, found = min(cores.EVERY), threading.main_thread().native_id, []
    monkeypatch.setattr(cores, "_before", frozenset())
    assert main is not None

    async def look(parent: FakeParent) -> None:
        found.append(os.sched_getaffinity(main))
        await parent.open_tiny()

    try:
        FakeParent(look, core).run()
    finally:
        cores.roam()
    assert found == [{core}]


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_worker_whose_core_is_gone_is_up_all_the_same() -> None:
    before, found = os.sched_getaffinity(0), []

    async def look(parent: FakeParent) -> None:
        await parent.open_tiny()
        found.append(parent.up.is_set())

    FakeParent(look, core=1023).run()
    assert found == [True]
    assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("logging_as_it_was")
def test_the_threads_beside_an_event_loop_that_keeps_to_a_core_do_not() -> None:
    found: dict[str, set[int]] = {}

    async def look(parent: FakeParent) -> None:
        await parent.open_tiny()
        with parent.connect() as client:
            client.sendall(ASK.encode() + PHOTO)
            assert (await asyncio.to_thread(client.recv, 65536)).startswith(b"HTTP/1.1 200 OK")
        for thread in threading.enumerate():
            assert thread.native_id is not None
            found[thread.name.partition("_")[0]] = os.sched_getaffinity(thread.native_id)

    try:
        FakeParent(look, min(cores.EVERY)).run()
    finally:
        cores.roam()
    assert {"run", "decode"} <= set(found)
    assert found.pop("MainThread") == {min(cores.EVERY)}
    assert set(map(frozenset, found.values())) == {cores.EVERY}
