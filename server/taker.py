"""A worker's side of the door: takes the connections that the parent hands over, and counts them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from server.door import AT_ONCE, CLOSED, TAKEN


class Tracked(set[Any]):
    """A set that tells when something leaves it.

    Args:
        left: called after each.
    """

    def __init__(self, left: Callable[[], object]) -> None:
        super().__init__()
        self._left = left

    def discard(self, element: object) -> None:
        """Take an element out."""
        super().discard(element)
        self._left()


class Taker:
    """Takes connections from the running event loop.

    Args:
        channel: brings them.
        counts: shared with the parent.
        serve: makes a connection one that is served, or closes it.

    Attributes:
        connections: those that are served; whoever serves them puts them in and takes them out.
        finished: set once no more will come.
    """

    def __init__(
        self, channel: socket.socket, counts: Any, serve: Callable[[bytes, socket.socket], Awaitable[None]]
    ) -> None:
        self._channel, self._counts, self._serve = channel, counts, serve
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self.connections = Tracked(self._count)
        self.finished = asyncio.Event()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._take)

    def _take(self) -> None:
        for _ in range(AT_ONCE):
            try:
                kind, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                kind = b""
            if not kind:
                self._loop.remove_reader(self._channel)
                self.finished.set()
                return
            self._counts[TAKEN] += 1
            with contextlib.suppress(OSError):  # a full channel has enough bytes in it to be looked at
                self._channel.send(b"!")
            for descriptor in descriptors:  # none where this process has no room for another
                self._begin(kind, socket.socket(fileno=descriptor))
            self._count()

    def _begin(self, kind: bytes, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = self._loop.create_task(self._open(kind, connection))
        self._beginning.add(task)
        task.add_done_callback(self._begun)

    async def _open(self, kind: bytes, connection: socket.socket) -> None:
        await self._serve(kind, connection)

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        self._count()

    def _count(self) -> None:
        self._counts[CLOSED] = self._counts[TAKEN] - len(self._beginning) - len(self.connections)
