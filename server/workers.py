"""Several server processes behind one port, and the parent that watches over them.

The parent opens the port, reads the bundles, starts the workers, and hands them both: connections by `server.door`,
bundles over a pipe. A worker that dies is replaced at once, and begins with what the others serve, whatever is on the
disk by then. If the first ones cannot start, it ends them all, since their replacements could not start either: the
reason is told once, and there is no loop. Every worker writes its figures to a folder that the parent makes, so that
each of them can answer for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError
from server import cores
from server.commands import Command, Leaving, Request, Up
from server.control import Control, Coordinator
from server.door import SPAWN, Door, Place, Seat
from server.library import Identity, Library
from server.line import Line
from server.metrics import FOLDER_VARIABLE
from server.port import HANG_UP, SIGNALS
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - writable in a container whose root is not; the folder in it is private
MARGIN_S = 5.0
PAUSE_S = 1.0  # before a worker is started whose predecessor did not get as far as serving

Target = Callable[[ServerSettings, Place], None]


class Hand:
    """One worker, as the parent sees it.

    Args:
        settings: handed to it.
        core: handed to it.
        target: what it runs.
        hear: answers what it asks.

    Attributes:
        up: done once it takes connections and commands.
        gone: done once it has ended.
        seat: its connections.
    """

    def __init__(
        self, settings: ServerSettings, core: int | None, target: Target, hear: Callable[[Hand, Any], Any]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.up: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.seat = Seat()
        ours, theirs = SPAWN.Pipe()  # both ways, so that a worker sees its parent go
        place = Place(theirs, self.seat.theirs, self.seat.counts, core)
        self.process = SPAWN.Process(target=target, args=(settings, place))
        try:
            self.process.start()
        except BaseException:
            ours.close()
            self.seat.leave()
            raise
        finally:
            theirs.close()
            self.seat.theirs.close()
        self._line = Line(ours, lambda command: hear(self, command), self._cut_off)
        loop.add_reader(self.process.sentinel, self._ended)

    async def carry_out(self, command: Command) -> dict[Identity, str]:
        """Have it do one thing; gives back why bundles cannot be served."""
        faults: dict[Identity, str] = await self._line.call(command)
        return faults

    def give_up(self) -> None:
        """Kill it."""
        self.process.kill()

    def _cut_off(self) -> None:
        """See that it ends: it is no use any more, if it is not about to end anyway."""
        asyncio.get_running_loop().call_later(MARGIN_S, self.process.kill)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self.process.sentinel)
        self.process.join()
        self.gone.set_result(None)


class Parent:
    """Keeps the workers alive until a signal comes.

    Args:
        settings: handed to every worker.
        listeners: open ports, by what their connections are announced as.
        library: has been opened.
        on_ready: called once all are ready for the first time.
        target: what a worker runs: called with settings and its place; it says `Up` once it takes commands.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Mapping[bytes, socket.socket],
        library: Library,
        on_ready: Callable[[], None],
        target: Target,
    ) -> None:
        self._settings, self._listeners, self._target = settings, listeners, target
        self._library, self._on_ready = library, on_ready
        self._hands: list[Hand] = []
        self._announced = self._stopping = False
        self._reloads: set[asyncio.Task[None]] = set()

    def run(self) -> str | None:
        """Start the workers and watch over them.

        Returns:
            Why they could not go on, or None after a signal.
        """
        with _metrics_folder():
            return asyncio.run(self._run())

    async def _run(self) -> str | None:
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[str | None] = loop.create_future()
        self._hurry = asyncio.Event()
        self._door = Door(self._listeners)
        self._coordinator = Coordinator(self._library, self._settings.reload_timeout_s)
        self._control = Control(self._coordinator.carry_out, lambda name, version: True)
        with _handlers(dict.fromkeys(SIGNALS, self._told_to_stop) | dict.fromkeys(HANG_UP, self._told_to_reload)):
            posts = [loop.create_task(self._keep(core)) for core in cores.of_workers(self._settings)]
            for post in posts:
                post.add_done_callback(self._given_up)
            try:
                failure = await self._over
            finally:
                for post in posts:
                    post.cancel()
                await self._stop()
        return failure

    async def _keep(self, core: int | None) -> None:
        """Keep one place filled."""
        while True:
            hand = Hand(self._settings, core, self._target, self._heard)
            self._hands.append(hand)
            hand.gone.add_done_callback(partial(self._mourn, hand))
            failure = await self._begin(hand)
            if failure is not None and not any(other.seat.ready for other in self._hands):
                self._end(failure)
            await asyncio.wait([hand.gone])
            if failure is not None:
                logger.error("worker not started", extra={"fields": {"reason": failure}})
                await asyncio.sleep(PAUSE_S)

    def _given_up(self, post: asyncio.Task[None]) -> None:
        """A place that cannot be kept filled, for want of memory or whatever the system says, ends them all."""
        if not post.cancelled() and (error := post.exception()) is not None:
            self._end(f"a worker cannot be started: {error}")

    async def _begin(self, hand: Hand) -> str | None:
        """Bring a worker to where it serves; gives back why that cannot be done."""
        await asyncio.wait([hand.up, hand.gone], return_when=asyncio.FIRST_COMPLETED)
        if hand.gone.done():
            return f"a worker ended before it was ready, with exit code {hand.process.exitcode}"
        self._door.add(hand.seat)
        if (failure := await self._coordinator.welcome(hand)) is not None:
            hand.give_up()
            return failure
        hand.gone.add_done_callback(lambda _: self._coordinator.dismiss(hand))  # even if it is gone by now
        hand.seat.ready = True
        if not self._announced and sum(other.seat.ready for other in self._hands) == self._settings.workers:
            self._announced = True
            self._on_ready()
        return None

    async def _heard(self, hand: Hand, message: Up | Leaving | Request) -> Any:
        """Answer a worker."""
        match message:
            case Up():
                hand.up.set_result(None)
            case Leaving() if self._stopping:
                self._hurry.set()
            case Leaving():
                self._door.retire(hand.seat)
            case _:
                return await self._coordinator.carry_out(message)
        return None

    def _mourn(self, hand: Hand, _: object) -> None:
        """See to what a worker leaves behind."""
        self._hands.remove(hand)
        self._door.drop(hand.seat)
        if not self._stopping:
            fields = {"pid": hand.process.pid, "exit_code": hand.process.exitcode}
            logger.error("worker died", extra={"fields": fields})

    def _told_to_stop(self) -> None:
        if self._over.done():
            self._hurry.set()
            self._terminate()
        self._end(None)

    def _end(self, failure: str | None) -> None:
        if not self._over.done():
            self._over.set_result(failure)

    def _told_to_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        with contextlib.suppress(CascadeError):  # the log says what
            await self._control.reload()

    def _terminate(self) -> None:
        for hand in self._hands:
            hand.process.terminate()

    async def _stop(self) -> None:
        """Have everything that was accepted answered, and end the workers."""
        self._stopping = True
        self._terminate()
        if self._announced:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_delay_s):
                    await self._hurry.wait()
        self._door.close()
        if left := list(self._hands):
            await asyncio.wait([hand.gone for hand in left], timeout=self._settings.drain_timeout_s + MARGIN_S)
        for hand in left:
            hand.process.kill()
            await hand.gone


def supervise(
    settings: ServerSettings,
    listeners: Mapping[bytes, socket.socket],
    library: Library,
    on_ready: Callable[[], None],
) -> str | None:
    """Serve with several workers until a signal comes.

    Args:
        settings: handed to every worker.
        listeners: open ports, by what their connections are announced as.
        library: has been opened.
        on_ready: called once all are ready.

    Returns:
        Why they could not go on, or None after a signal.
    """
    return Parent(settings, listeners, library, on_ready, work).run()


def work(settings: ServerSettings, place: Place) -> None:
    """Be a worker."""
    from server.worker import work as work_here  # here, since the parent runs no network and needs no onnxruntime

    work_here(settings, place)


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    before = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="rescade-metrics-", dir=place) as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(FOLDER_VARIABLE)
            if before is not None:
                os.environ[FOLDER_VARIABLE] = before


@contextlib.contextmanager
def _handlers(actions: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Have the running event loop act on signals."""
    loop = asyncio.get_running_loop()

    def heard(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(actions[signal.Signals(number)])

    before = {number: signal.signal(number, heard) for number in actions}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
