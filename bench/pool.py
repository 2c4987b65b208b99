"""Connections to one server: kept, bounded, and replaced when they are stale.

Idle connections are used in turn, the one that has rested longest first, so that a server of several processes sees
them all at work. A server may close one just as a request goes out on it. Where the pool resends, such a request goes
out once more on a new connection, provided that no byte of an answer had come. Where it does not, that is an error, to
be counted by a load test.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections import deque
from collections.abc import Callable

from bench.address import Address
from bench.connection import Connection, Response, connect
from bench.errors import Closed, Dropped


class Pool:
    """Sends whole requests, each on a connection of its own for as long as it takes.

    Args:
        address: of the server.
        connections: most open at once; further requests wait for one.
        connect_timeout_s: longest time to make one, seconds; default no limit but the caller's.
        keep_alive_s: one that rested longer is not used again, seconds.
        resend: whether a request that met a stale connection is sent once more.
        tls: certificates to trust; default the system's.
        clock: a monotonic clock, seconds, also for the stamps on responses.
    """

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 1,
        connect_timeout_s: float | None = None,
        keep_alive_s: float = math.inf,
        resend: bool = False,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._keep_alive_s = keep_alive_s
        self._resend = resend
        self._tls = ssl.create_default_context() if address.tls and tls is None else tls
        self._clock = clock
        self._turns = asyncio.Semaphore(connections)
        self._idle: deque[tuple[Connection, float]] = deque()
        self._closed = False

    async def close(self) -> None:
        """Drop all idle connections, and those in use as soon as their answers have come."""
        self._closed = True
        while self._idle:
            self._idle.popleft()[0].close()
        await asyncio.sleep(0)

    async def exchange(self, request: bytes) -> Response:
        """Send one whole request and wait for its whole response.

        Raises:
            Closed: the pool was closed.
            Unreachable: no connection could be made.
            Dropped: the connection ended first.
            BadAnswer: what came is not HTTP, or too much of it.
        """
        async with self._turns:
            if self._closed:
                raise Closed(f"the client of {self.address} is closed")
            kept = self._rested()
            if kept is not None:
                try:
                    return await self._over(kept, request)
                except Dropped as failure:
                    if not (self._resend and failure.silent):
                        raise
            return await self._over(await self._new(), request)

    async def _new(self) -> Connection:
        return await connect(self.address, self._clock, tls=self._tls, timeout_s=self._connect_timeout_s)

    async def _over(self, connection: Connection, request: bytes) -> Response:
        try:
            response = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        if self._closed:
            connection.close()
        elif connection.open:
            self._idle.append((connection, response.received_at))
        return response

    def _rested(self) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popleft()
            if connection.open and self._clock() - since <= self._keep_alive_s:
                return connection
            connection.close()
        return None
