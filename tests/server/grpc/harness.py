"""A gRPC port over the fakes or over the real engine, and a plain client that has no library of the protocol's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from fastapi import FastAPI

from server.app import Service, create_app
from server.oip.ports import Models
from server.rpc.listener import Listener
from server.rpc.messages import INFERENCE, REQUESTS, RESPONSES, Message
from server.rpc.port import Check, let_in
from server.runtime import Runtime
from tests.server.harness import settings_for_tests


@dataclass
class FakeMeter:
    """Keeps what it is told.

    Attributes:
        in_hand: calls.
        told: path and status of each call that has ended.
    """

    in_hand: int = 0
    told: list[tuple[str, int]] = field(default_factory=list)

    def arrived(self) -> None:
        self.in_hand += 1

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        self.in_hand -= 1
        self.told.append((path.rpartition("/")[2], status))


class Client:
    """Calls methods by name.

    Args:
        channel: to the port.
        port: its number.
    """

    def __init__(self, channel: grpc.aio.Channel, port: int) -> None:
        self.channel, self.port = channel, port

    def start(self, method: str, message: Message | None = None, **options: Any) -> Any:
        """A call that is under way."""
        body = REQUESTS[method]() if message is None else message
        return self.raw(method, RESPONSES[method].FromString)(body.SerializeToString(), **options)

    def raw(self, method: str, read: Any = None) -> Any:
        """What sends bytes."""
        return self.channel.unary_unary(f"/{INFERENCE}/{method}", response_deserializer=read)

    async def ask(self, method: str, message: Message | None = None, **fields: Any) -> Any:
        """The response to a message, or to one of these fields."""
        return await self.start(method, REQUESTS[method](**fields) if message is None else message)

    async def refusal(self, method: str, message: Message | None = None, **options: Any) -> grpc.aio.AioRpcError:
        """The error that answers a message."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.start(method, message, **options)
        assert "Traceback" not in (caught.value.details() or "")
        return caught.value


@asynccontextmanager
async def listening(
    models: Models, meter: FakeMeter | None = None, check: Check = let_in, **settings: Any
) -> AsyncIterator[Client]:
    """A client of a port over these models."""
    given = settings_for_tests(grpc_port=0, **settings)
    listener = Listener(given, models, FakeMeter() if meter is None else meter, check)
    await listener.open()
    try:
        async with connected(listener.port) as client:
            yield client
    finally:
        await listener.close()


@asynccontextmanager
async def connected(port: int, host: str = "127.0.0.1") -> AsyncIterator[Client]:
    """A client of a port."""
    options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(f"{host}:{port}", options) as channel:
        yield Client(channel, port)


@asynccontextmanager
async def serving_both(runtime: Runtime, **settings: Any) -> AsyncIterator[tuple[Client, FastAPI]]:
    """A client of the gRPC port of an application that is warm."""
    app = create_app(settings_for_tests(grpc_port=0, **settings), runtime)
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        await service.warmed.wait()
        assert isinstance(service.rpc, Listener)
        async with connected(service.rpc.port) as client:
            yield client, app
