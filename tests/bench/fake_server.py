"""A tiny HTTP server for the tests: a plain function answers each request with raw bytes.

The images it is asked about are JSON: `{"label": "cat", "energies": [0.6, 0.9]}` says what a cascade would find, so
that a test knows every exit beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

LABELS = ("cat", "dog")
OWN_THRESHOLD = 0.5
BUNDLE = {
    "name": "pets",
    "version": "1",
    "stages": [{"macs": 100, "role": "student"}, {"macs": 300, "role": "residual"}],
    "labels": list(LABELS),
}


CERTIFICATE = Path(__file__).with_name("localhost.pem")


def certified() -> ssl.SSLContext:
    """What a server of TLS needs; the same file is what its clients have to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@dataclass(frozen=True)
class Request:
    connection: int
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request], Awaitable[bytes | tuple[bytes, ...]]]


def reply(document: Any, status: int = 200, headers: str = "") -> bytes:
    """A JSON response with a length."""
    body = json.dumps(document).encode()
    return f"HTTP/1.1 {status} Status\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def chunked(document: Any, size: int = 7) -> bytes:
    """A JSON response in chunks of `size` bytes."""
    body = json.dumps(document).encode()
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)] + [b""]
    chunks = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def refusal(status: int, code: str, message: str, headers: str = "") -> bytes:
    """An error as the server words it."""
    return reply({"error": {"code": code, "message": message, "request_id": "7"}}, status, headers)


def prediction(label: str = "cat", stage: int = 0, energy: float = 0.9) -> dict[str, Any]:
    """The document of one answer."""
    found = {"label": label, "class": LABELS.index(label), "score": 0.9, "stage": stage, "energy": energy, "top": []}
    return {"model": "pets", "version": "1", "threshold": OWN_THRESHOLD, "predictions": [found]}


def image(label: str = "cat", *energies: float) -> bytes:
    """An image that the cascade calls `label`, with the energy it has after each stage."""
    return json.dumps({"label": label, "energies": energies or (0.9, 0.9)}).encode()


async def cascade(request: Request) -> bytes:
    """What a whole server does: describes its bundle, and answers as the image and the options say."""
    if request.path == "/bundle":
        return reply(BUNDLE)
    found = json.loads(request.body)
    threshold = float(request.query.get("threshold", OWN_THRESHOLD))
    last = min(int(request.query.get("max_stage", 1)), 1)
    stage = next((stage for stage, energy in enumerate(found["energies"]) if energy > threshold or stage == last), last)
    answer = prediction(found["label"], stage, found["energies"][stage])
    return reply(answer | {"threshold": threshold})


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve on a free port; gives the base URL.

    A handler returns the bytes to send, or a tuple of pieces to send one by one; an empty piece ends the connection.
    """
    tasks: set[asyncio.Task[None]] = set()
    numbers = itertools.count()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(converse(reader, writer, next(numbers)))
        tasks.add(task)
        await asyncio.wait([task])
        writer.close()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                answer = await handler(await _receive(reader, number))
                for piece in answer if isinstance(answer, tuple) else (answer,):
                    if not piece:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await server.wait_closed()
        await asyncio.sleep(0.001)


@contextlib.contextmanager
def serving_in_thread(handler: Handler) -> Iterator[str]:
    """Serve beside a command that runs a loop of its own."""
    ready: list[str] = []
    started, loop, ends = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        async with serving(handler) as url:
            ready.append(url)
            started.set()
            await ends.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    started.wait(10)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(10)
        loop.close()


def folder_of_pets(root: Path) -> Path:
    """An ImageFolder of four: two leave at stage 0 at the server's threshold, and one of those is called wrongly."""
    files = {
        "cat/easy.jpg": image("cat", 0.9, 0.95),
        "cat/hard.png": image("cat", 0.3, 0.8),
        "dog/wrong.jpg": image("cat", 0.7, 0.9),
        "dog/hard.jpeg": image("dog", 0.2, 0.6),
    }
    for name, body in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return root


async def _receive(reader: asyncio.StreamReader, connection: int) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *rest = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Request(connection, method, parts.path, dict(parse_qsl(parts.query)), headers, body)
