"""One keep-alive HTTP/1.1 connection: request bytes out, one whole response back, stamped when its last byte came.

The load generator shares its cores with the server it measures, so whatever it spends a request is taken from the
server and shows up as the server's latency. A general client (redirects, cookies, proxies, layered transports) spends
more on a request than a small server does on an answer. What a load test needs is a POST and its reply, so this is an
`asyncio.Protocol` with httptools, the parser uvicorn uses: no reader task, no header objects, one future a request.

The stamp is taken inside the protocol's callback and not by the coroutine that waits, which may be woken later.

A request is sent once. A connection that was closed under it is an error, which says whether a byte of an answer had
come; what follows from that is for others to decide.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from bench.address import Address
from bench.errors import BadAnswer, ClientError, Dropped, Unreachable

MAX_RESPONSE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Response:
    """A whole HTTP response.

    Attributes:
        status: HTTP status.
        headers: names in lower case; of repeated headers the last.
        body: decoded from chunks where it came in chunks.
        received_at: reading of the connection's clock when the last byte arrived, seconds.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    received_at: float


class Connection(asyncio.Protocol):
    """One socket with at most one request in flight.

    Args:
        clock: a monotonic clock, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._size = 0
        self._ends_with_connection = False
        self._silent = True

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and self._waiter is None

    async def exchange(self, request: bytes) -> Response:
        """Send one whole request and wait for its whole response.

        A caller that stops waiting has to `close()`: what arrives later would be taken for the next answer.

        Raises:
            Dropped: the connection ended first.
            BadAnswer: what came is not HTTP, or too much of it.
        """
        if self._transport is None:
            raise Dropped("the server closed the connection before the request was sent", silent=True)
        self._waiter = asyncio.get_running_loop().create_future()
        self._forget()
        self._silent = True
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        """Drop the socket at once, with whatever is still on the way."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when the socket is connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of a class of their own

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with bytes from the socket."""
        if self._waiter is None:
            self.close()
            return
        self._silent = False
        self._size += len(data)
        if self._size > MAX_RESPONSE_BYTES:
            self._fail(BadAnswer(f"the response is longer than {MAX_RESPONSE_BYTES} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BadAnswer(f"the response is not HTTP/1.1: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once, when the socket is gone."""
        self._transport = None
        if self._ends_with_connection and exc is None:
            self._finish()
        else:
            why = f": {exc}" if exc else ""
            self._fail(Dropped(f"the connection ended before the answer did{why}", self._silent))

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a response; one that nobody asked for ends the connection."""
        if self._waiter is None:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with each header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of the head."""
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        self._ends_with_connection = not framed and self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        """Called by the parser with each piece of the body."""
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of each response, interim ones (1xx) included."""
        if self._parser.get_status_code() < 200:
            self._forget()
        else:
            self._finish()

    def _finish(self) -> None:
        received_at = self._clock()
        waiter, self._waiter = self._waiter, None
        transport = self._transport
        if transport is not None and (transport.get_write_buffer_size() or not self._parser.should_keep_alive()):
            self.close()
        if waiter is not None and not waiter.done():
            status, body = self._parser.get_status_code(), b"".join(self._chunks)
            waiter.set_result(Response(status, self._headers, body, received_at))
        self._forget()

    def _fail(self, error: ClientError) -> None:
        waiter, self._waiter = self._waiter, None
        self.close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _forget(self) -> None:
        self._headers, self._chunks, self._size = {}, [], 0
        self._ends_with_connection = False


async def connect(
    address: Address,
    clock: Callable[[], float] = time.perf_counter,
    *,
    tls: ssl.SSLContext | None = None,
    timeout_s: float | None = None,
) -> Connection:
    """Open one connection.

    Args:
        address: of the server.
        clock: a monotonic clock, seconds, for the stamps on responses.
        tls: certificates to trust; default the system's.
        timeout_s: longest time it may take, seconds; default no limit but the caller's.

    Raises:
        Unreachable: nobody listens there or answers in time, the name is unknown, or TLS failed.
    """
    context = (tls or ssl.create_default_context()) if address.tls else None
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(clock), address.host, address.port, ssl=context
            )
    except ConnectionRefusedError as error:
        raise Unreachable(f"cannot connect to {address}: nobody listens there") from error
    except (OSError, UnicodeError) as error:
        lasting = isinstance(error, ssl.SSLError | socket.gaierror | UnicodeError)
        raise Unreachable(f"cannot connect to {address}: {str(error) or 'it took too long'}", lasting) from error
    return connection
