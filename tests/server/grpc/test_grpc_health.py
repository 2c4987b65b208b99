"""The standard health service: asked once, and watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs the extra `grpc`")
pytest.importorskip("google.protobuf", reason="needs the extra `grpc`")

import grpc

from server.rpc.errors import Code
from server.rpc.listener import Listener
from server.rpc.messages import HEALTH, INFERENCE, HealthRequest, HealthResponse
from tests.server.grpc.harness import Client, FakeMeter, connected, listening
from tests.server.harness import settings_for_tests
from tests.server.oip.fakes import FakeModels

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


async def check(client: Client, service: str = "") -> int:
    """The status of a service."""
    ask = client.channel.unary_unary(f"/{HEALTH}/Check", response_deserializer=HealthResponse.FromString)
    status: int = (await ask(HealthRequest(service=service).SerializeToString())).status
    return status


def watch(client: Client, service: str = "") -> AsyncIterator[Any]:
    """The statuses of a service, as they change."""
    ask = client.channel.unary_stream(f"/{HEALTH}/Watch", response_deserializer=HealthResponse.FromString)
    statuses: AsyncIterator[Any] = aiter(ask(HealthRequest(service=service).SerializeToString()))
    return statuses


@pytest.mark.parametrize("service", ["", INFERENCE, HEALTH])
async def test_health_follows_readiness(service: str) -> None:
    models = FakeModels()
    async with listening(models) as client:
        assert await check(client, service) == SERVING
        models.ready = False
        assert await check(client, service) == NOT_SERVING


async def test_a_service_that_is_not_there_is_not_found() -> None:
    async with listening(FakeModels()) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(client, "nothing")
    assert caught.value.code() is Code.NOT_FOUND


async def test_bytes_that_are_no_message_are_refused() -> None:
    async with listening(FakeModels()) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.channel.unary_unary(f"/{HEALTH}/Check")(b"\xff")
    assert caught.value.code() is Code.INVALID_ARGUMENT


async def test_whoever_watches_is_told_of_changes() -> None:
    models = FakeModels(ready=False)
    async with listening(models) as client:
        statuses = watch(client)
        assert (await anext(statuses)).status == NOT_SERVING
        models.ready = True
        assert (await anext(statuses)).status == SERVING


async def test_whoever_watches_hears_nothing_while_nothing_changes() -> None:
    async with listening(FakeModels()) as client:
        statuses = watch(client)
        assert (await anext(statuses)).status == SERVING
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(statuses), 0.5)


async def test_whoever_watches_is_let_go_at_the_end() -> None:
    listener = Listener(settings_for_tests(grpc_port=0), FakeModels(), FakeMeter(), lambda _: None)
    await listener.open()
    async with connected(listener.port) as client:
        known, unknown = watch(client), watch(client, "nothing")
        assert (await anext(known)).status == SERVING
        assert (await anext(unknown)).status == SERVICE_UNKNOWN
        listener.begin_close()
        assert [found.status async for found in known] == [NOT_SERVING]
        assert [found.status async for found in unknown] == []
        await listener.close()
