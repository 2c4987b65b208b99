"""A connection without a network: bytes in, bytes out."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import orjson
from PIL import Image
from uvicorn.server import ServerState

from server.app import Application, create_app
from server.port import PUBLIC
from server.process import Process
from server.runtime import Runtime
from tests.server.harness import settings_for_tests


class Wire(asyncio.Transport):
    """The server's end of a connection, as far as it writes and closes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Peer:
    """A client at the other end: says bytes, and reads answers as a strict parser does."""

    def __init__(self, protocol: Any) -> None:
        self.protocol, self.wire = protocol, Wire()
        protocol.connection_made(self.wire)

    def say(self, data: bytes) -> None:
        self.protocol.data_received(data)

    async def answers(self, count: int = 1) -> list[tuple[int, dict[str, str], Any]]:
        """Status, headers and JSON of the next answers."""
        found: list[tuple[int, dict[str, str], Any]] = []
        rest = b""
        async with asyncio.timeout(10):
            while len(found) < count:
                await asyncio.sleep(0)
                rest += self.wire.sent
                self.wire.sent = b""
                while (answer := _answer(rest)) is not None:
                    found.append(answer[0])
                    rest = answer[1]
        assert rest == b""
        return found


def _answer(data: bytes) -> tuple[tuple[int, dict[str, str], Any], bytes] | None:
    if not data:
        return None
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    status, headers, body = 0, {}, b""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Response):
            status, headers = event.status_code, {k.decode(): v.decode() for k, v in event.headers}
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return (status, headers, orjson.loads(body)), parser.trailing_data[0]
        elif event is h11.NEED_DATA:
            return None


@asynccontextmanager
async def connections(*runtimes: Runtime, **settings: Any) -> AsyncIterator[tuple[Application, Any]]:
    """A warm application, and what makes connections to it."""
    chosen = settings_for_tests(**settings)
    app = create_app(chosen, *runtimes)
    async with app.router.lifespan_context(app):
        await app.service.warmed.wait()
        process = Process(app, chosen, lambda: None)
        process.config.load()
        process.server_state = ServerState()
        process.server_state.default_headers = [(b"date", b"today")]
        process.lifespan = type("Lifespan", (), {"state": {}})()
        yield app, lambda: Peer(process.protocol(PUBLIC))


def jpeg(row: int, size: int = 8) -> bytes:
    """An image that stands for a row of `FakeRuntime`'s table."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (row, row, row)).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def question(body: bytes, query: str = "", kind: str = "image/jpeg", **headers: str) -> bytes:
    """A request for `/predict`; names of headers have underscores for dashes."""
    lines = [f"POST /predict{query} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until something holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nobody sets an event here
            await asyncio.sleep(0)
