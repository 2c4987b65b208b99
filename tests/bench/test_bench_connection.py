"""One connection: every way a response can be framed, and every way it can go wrong."""

from __future__ import annotations

import asyncio

import pytest

from bench import connection
from bench.address import parse
from bench.connection import Connection, Response, connect
from bench.errors import BadAnswer, ClientError, Dropped, Unreachable
from tests.bench.fake_server import Handler, Request, chunked, reply, serving

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


def saying(*pieces: bytes) -> Handler:
    async def handler(request: Request) -> tuple[bytes, ...]:
        return pieces

    return handler


async def ask(handler: Handler) -> tuple[Response, bool]:
    """One response, and whether the connection could be used again."""
    async with serving(handler) as url:
        line = await connect(parse(url))
        try:
            return await line.exchange(GET), line.open
        finally:
            line.close()


async def test_a_response_with_a_length_leaves_the_connection_open() -> None:
    response, reusable = await ask(saying(reply({"a": 1}, 404, "X-Request-Id: 7\r\n")))
    assert (response.status, response.body, reusable) == (404, b'{"a": 1}', True)
    assert response.headers == {"content-length": "8", "x-request-id": "7"}


async def test_a_chunked_response_is_put_together() -> None:
    response, reusable = await ask(saying(chunked({"a": "long enough for several chunks"})))
    assert (response.body, reusable) == (b'{"a": "long enough for several chunks"}', True)


@pytest.mark.parametrize("whole", [reply({"a": 1}), chunked({"a": 1})])
async def test_a_response_may_come_byte_by_byte(whole: bytes) -> None:
    response, _ = await ask(saying(*(whole[i : i + 1] for i in range(len(whole)))))
    assert response.body == b'{"a": 1}'


async def test_a_response_without_a_length_ends_with_the_connection() -> None:
    response, reusable = await ask(saying(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it", b""))
    assert (response.body, reusable) == (b"all of it", False)


async def test_an_interim_response_is_passed_over() -> None:
    response, _ = await ask(saying(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", reply({"a": 1})))
    assert (response.status, response.body) == (200, b'{"a": 1}')
    assert "link" not in response.headers


async def test_a_connection_the_server_wants_closed_is_not_used_again() -> None:
    _, reusable = await ask(saying(reply({"a": 1}, headers="Connection: close\r\n")))
    assert not reusable


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ((b"",), Dropped),
        ((b"HTTP/1.1 200 OK\r\nContent-Le", b""), Dropped),
        ((reply({"a": 1})[:-1], b""), Dropped),
        ((b"HTTP/1.1 103 Early Hints\r\n\r\n", b""), Dropped),
        ((b"SSH-2.0-OpenSSH\r\n",), BadAnswer),
        ((b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",), BadAnswer),
    ],
)
async def test_what_is_not_a_whole_response_is_an_error(pieces: tuple[bytes, ...], kind: type[ClientError]) -> None:
    with pytest.raises(kind):
        await ask(saying(*pieces))


async def test_a_response_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_RESPONSE_BYTES", 1000)
    with pytest.raises(BadAnswer, match="longer than 1000 bytes"):
        await ask(saying(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 500] * 3))


async def test_one_answer_too_many_ends_the_connection() -> None:
    """Otherwise it would be taken for the answer to the next request."""
    response, reusable = await ask(saying(reply({"a": 1}) + reply({"b": 2})))
    assert (response.body, reusable) == (b'{"a": 1}', False)


async def test_bytes_nobody_asked_for_end_the_connection() -> None:
    answered = asyncio.Event()

    async def talk_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply({}))
        await answered.wait()
        writer.write(b"HTTP/1.1 200 OK\r\n")
        writer.close()

    server = await asyncio.start_server(talk_on, "127.0.0.1", 0)
    line = await connect(parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    await line.exchange(GET)
    assert line.open
    answered.set()
    while line.open:  # noqa: ASYNC110 - nothing tells when bytes nobody waits for arrive
        await asyncio.sleep(0.001)
    with pytest.raises(Dropped):
        await line.exchange(GET)
    server.close()
    await server.wait_closed()


async def test_an_answer_before_the_request_was_sent_ends_the_connection() -> None:
    """A server that refuses a large body after the head answers early; the rest of the body must not follow."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply({"error": {}}, 413))
        await writer.drain()
        await closed.wait()
        writer.transport.abort()

    closed = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    line = await connect(parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    size = 64 * 2**20
    response = await line.exchange(f"POST / HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))
    assert (response.status, line.open) == (413, False)
    closed.set()
    server.close()
    await server.wait_closed()


async def test_a_response_is_stamped_with_the_clock_it_was_given() -> None:
    async with serving(saying(reply({}))) as url:
        line = await connect(parse(url), clock=lambda: 42.0)
        assert (await line.exchange(GET)).received_at == 42.0
        line.close()


async def test_nobody_listening_is_unreachable() -> None:
    async with serving(saying(b"")) as url:
        pass
    with pytest.raises(Unreachable, match="nobody listens"):
        await connect(parse(url))


async def test_a_name_that_cannot_be_one_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="cannot connect"):
        await connect(parse(f"http://{'a' * 64}:1"))


async def test_tls_with_a_server_that_has_none_is_unreachable() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply({}))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    with pytest.raises(Unreachable, match="cannot connect to https://"):
        await connect(parse(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    server.close()
    await server.wait_closed()


async def test_a_connection_that_was_never_made_sends_nothing() -> None:
    with pytest.raises(Dropped):
        await Connection().exchange(GET)
