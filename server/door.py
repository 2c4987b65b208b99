"""The door: one process accepts every connection, and hands each to the worker that has the fewest open.

Workers that accept for themselves race for each connection, and the one that is awake wins most of them. Here the
parent knows how many connections each worker has: it counts what it hands out, and each worker counts, in memory they
share, what it took and what has closed since.

A connection travels as a file descriptor over a Unix socket. The parent keeps its own copy until the worker has taken
it, of which a byte on the same socket tells, so that what was handed to a worker that died goes to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

logger = logging.getLogger(__name__)

SPAWN = multiprocessing.get_context("spawn")
TAKEN, CLOSED = 0, 1  # places in the shared counts
AT_ONCE = 64  # connections accepted in one go, so that other things get their turn
PAUSE_S = 0.1


@dataclass(frozen=True)
class Place:
    """What a worker is given at its start.

    Attributes:
        pipe: to the parent.
        channel: brings connections.
        counts: connections taken and closed, for the parent to read.
        core: that its event loop keeps to; None for any.
    """

    pipe: Connection
    channel: socket.socket
    counts: Any
    core: int | None = None


class Seat:
    """The parent's view of one worker's connections.

    Attributes:
        channel: takes connections, and brings a byte for each that was taken.
        theirs: the worker's end of it.
        counts: shared with the worker.
        ready: whether the worker is warm.
    """

    def __init__(self) -> None:
        self.channel, self.theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.counts = SPAWN.RawArray("q", 2)
        self.ready = False
        self._handed = self._released = 0
        self._unsure: deque[tuple[bytes, socket.socket]] = deque()

    @property
    def load(self) -> tuple[int, int]:
        """Connections that are open, and all there have been."""
        return self._handed - self.counts[CLOSED], self._handed

    def hand(self, kind: bytes, connection: socket.socket) -> bool:
        """Hand a connection over; False where the worker cannot take it now, or never again."""
        try:
            socket.send_fds(self.channel, [kind], [connection.fileno()])
        except OSError:
            return False
        self._handed += 1
        self._unsure.append((kind, connection))
        return True

    def release(self) -> None:
        """Let go of the connections that the worker has taken."""
        while self._released < self.counts[TAKEN]:
            self._released += 1
            self._unsure.popleft()[1].close()

    def leave(self) -> list[tuple[bytes, socket.socket]]:
        """Close the channel; gives back what was not taken."""
        self.release()
        self.channel.close()
        return list(self._unsure)


class Door:
    """Accepts on some ports and hands over what comes.

    Args:
        listeners: open ports, by the kind that their connections are announced as, one byte.
    """

    def __init__(self, listeners: Mapping[bytes, socket.socket]) -> None:
        self._listeners = dict(listeners)
        self._loop = asyncio.get_running_loop()
        self._seats: list[Seat] = []
        self._waiting: deque[tuple[bytes, socket.socket]] = deque()
        self._listening = self._resting = self._closed = False
        for listener in self._listeners.values():
            listener.setblocking(False)

    def add(self, seat: Seat) -> None:
        """Have a worker take connections from now on; warm ones go first."""
        if seat not in self._seats:
            self._seats.append(seat)
            self._loop.add_reader(seat.channel, self._rung, seat)
        self._settle()

    def retire(self, seat: Seat) -> None:
        """Hand nothing more to a worker that is about to end by itself."""
        if seat in self._seats:
            self._seats.remove(seat)
            with contextlib.suppress(OSError):
                seat.channel.shutdown(socket.SHUT_WR)
        self._settle()

    def drop(self, seat: Seat) -> None:
        """Forget a worker that is gone; what it had not taken goes to others."""
        if seat in self._seats:
            self._seats.remove(seat)
        self._loop.remove_reader(seat.channel)
        self._waiting.extend(seat.leave())
        self._settle()

    def close(self) -> None:
        """Take in what has knocked already, close the ports, and tell the workers that nothing more comes."""
        self._listen(False)
        for kind, listener in self._listeners.items():
            while self._accept(kind, listener):
                pass
            listener.close()
        self._closed = True
        self._settle()
        for seat in self._seats:
            with contextlib.suppress(OSError):
                seat.channel.shutdown(socket.SHUT_WR)

    def _settle(self) -> None:
        """Hand out what waits; accept more only once nothing does and somebody is there."""
        while self._waiting and self._place(*self._waiting[0]):
            self._waiting.popleft()
        if self._closed:
            while self._waiting:
                self._waiting.popleft()[1].close()
        else:
            self._listen(bool(self._seats) and not self._waiting and not self._resting)

    def _place(self, kind: bytes, connection: socket.socket) -> bool:
        warm = [seat for seat in self._seats if seat.ready] or self._seats
        return any(seat.hand(kind, connection) for seat in sorted(warm, key=lambda seat: seat.load))

    def _listen(self, wanted: bool) -> None:
        if wanted != self._listening:
            self._listening = wanted
            for kind, listener in self._listeners.items():
                if wanted:
                    self._loop.add_reader(listener, self._knocked, kind, listener)
                else:
                    self._loop.remove_reader(listener)

    def _knocked(self, kind: bytes, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if not self._accept(kind, listener):
                break
        self._settle()

    def _accept(self, kind: bytes, listener: socket.socket) -> bool:
        """Accept one connection, and hand it over or let it wait; False where there was none."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # out of file descriptors, most likely; the port would go on knocking
            logger.error("cannot accept", extra={"fields": {"reason": str(error)}})
            self._resting = True
            self._loop.call_later(PAUSE_S, self._rested)
            return False
        if self._waiting or not self._place(kind, connection):
            self._waiting.append((kind, connection))
        return True

    def _rested(self) -> None:
        self._resting = False
        self._settle()

    def _rung(self, seat: Seat) -> None:
        try:
            alive = bool(seat.channel.recv(4096))
        except OSError:
            alive = False
        if not alive:  # its end is seen to elsewhere
            self._loop.remove_reader(seat.channel)
        seat.release()
        self._settle()
