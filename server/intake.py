"""The requests a process has in hand: how many, how many bytes they hold, and whether anybody still waits for them.

Every request could have a timer for its body and a task that listens for its client's hanging up; both together take
longer than a light network. Here one look every few milliseconds serves all: it ends the requests whose body is late,
and sets a listener beside those that have been at it for a while. Requests that are answered within a look pay nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from cascade.errors import Overloaded, SlowRequest, TooLarge, UnsupportedType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive

LOOK_S = 0.01


@dataclass(eq=False, slots=True)
class Guest:
    """One request in hand.

    Attributes:
        task: answers it.
        receive: brings its body, then word of its client.
        since: when it came.
        size: bytes of its body so far.
        reading: whether the body is still coming.
        watcher: listens for the client's hanging up.
        fault: why it was ended from outside, if it was.
    """

    task: asyncio.Task[object]
    receive: Receive
    since: float
    size: int = 0
    reading: bool = True
    watcher: asyncio.Task[None] | None = None
    fault: Exception | None = None


class Intake:
    """Lets requests in and looks after them.

    Args:
        max_requests: in hand at once.
        max_body: bytes of one body.
        max_bodies: bytes of all bodies in hand.
        timeout_s: longest time a body may take to arrive.
        clock: seconds, steady.
    """

    def __init__(
        self,
        max_requests: int,
        max_body: int,
        max_bodies: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_requests, self._max_body, self._max_bodies = max_requests, max_body, max_bodies
        self._timeout_s, self._clock = timeout_s, clock
        self._guests: dict[Guest, None] = {}
        self._brief = 0
        self._buffered = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._guests) + self._brief

    def enter(self) -> None:
        """Let a request in whose body is small and here already; `leave` lets it out.

        Raises:
            Overloaded: too many are in hand.
        """
        self._check_room()
        self._brief += 1

    def leave(self) -> None:
        """Let out what came by `enter`."""
        self._brief -= 1

    def _check_room(self) -> None:
        if len(self) >= self._max_requests:
            raise Overloaded(f"{len(self)} requests are in hand, which is the limit: try again later")

    @contextmanager
    def guest(self, receive: Receive) -> Iterator[Guest]:
        """Let a request in and, at its end, out.

        Raises:
            Overloaded: too many are in hand.
            SlowRequest: its body did not arrive in time.
            ClientDisconnect: nobody waits for its answer any more.
        """
        self._check_room()
        task = asyncio.current_task()
        assert task is not None, "there is no request without a task"
        guest = Guest(task, receive, self._clock())
        self._guests[guest] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        try:
            yield guest
        except asyncio.CancelledError:
            if guest.fault is not None and task.uncancel() == 0:
                raise guest.fault from None
            raise
        finally:
            del self._guests[guest]
            self._buffered -= guest.size
            if guest.watcher is not None:
                guest.watcher.cancel()

    async def read(self, guest: Guest, announced: str, encoding: str = "") -> bytes:
        """The whole body, if it stays under its limit; the length it announces is checked first, then what comes.

        Args:
            guest: whose body.
            announced: its Content-Length, if it has one.
            encoding: its Content-Encoding, if it has one.

        Raises:
            TooLarge: the body is over its limit.
            Overloaded: all bodies together are.
            UnsupportedType: it is compressed.
            ClientDisconnect: the client hung up in the middle.
        """
        if encoding and encoding.lower() != "identity":
            raise UnsupportedType("Content-Encoding is not understood: send the body as it is")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_body):
            raise self._too_large()
        chunks = []
        more = True
        while more:
            message = await guest.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            self._take(guest, len(chunk))
            chunks.append(chunk)
            more = message.get("more_body", False)
        guest.reading = False
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _take(self, guest: Guest, size: int) -> None:
        guest.size += size
        self._buffered += size
        if guest.size > self._max_body:
            raise self._too_large()
        if self._buffered > self._max_bodies:
            raise Overloaded("the bodies in hand fill the memory set aside for them: try again later")

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_body} bytes: send fewer or smaller images")

    def _look(self) -> None:
        """End the requests whose body is late; listen for the clients of those that are being worked on."""
        now = self._clock()
        for guest in self._guests:
            if guest.reading:
                if now - guest.since > self._timeout_s and guest.fault is None:
                    _end(guest, SlowRequest("the body did not arrive in time: send it faster, or send less"))
            elif guest.watcher is None:
                guest.watcher = guest.task.get_loop().create_task(_watch(guest))
        again = bool(self._guests)
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look) if again else None


async def _watch(guest: Guest) -> None:
    while (await guest.receive())["type"] != "http.disconnect":
        pass
    _end(guest, ClientDisconnect())


def _end(guest: Guest, fault: Exception) -> None:
    guest.fault = fault
    guest.task.cancel()
