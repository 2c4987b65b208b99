"""The standard health service: the server, and the protocol's service, serve while every required model can answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from cascade.errors import NotFound, RequestError
from server.rpc.calls import Context
from server.rpc.errors import code_of
from server.rpc.messages import HEALTH, INFERENCE, HealthRequest, HealthResponse, parse

LOOK_S = 0.2
KNOWN = ("", INFERENCE, HEALTH)
SERVING, NOT_SERVING, SERVICE_UNKNOWN = "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"


class Health:
    """Answers those who ask, and tells those who watch.

    Args:
        is_ready: whether calls are answered now.
        look_s: seconds between two looks, for those who watch.
    """

    def __init__(self, is_ready: Callable[[], bool], look_s: float = LOOK_S) -> None:
        self._is_ready, self._look_s = is_ready, look_s
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Serve no more, and let go whoever watches."""
        self._ended.set()

    def handlers(self) -> dict[str, Any]:
        """What gRPC calls for each method."""
        return {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }

    def _status(self, service: str) -> str:
        if service not in KNOWN:
            return SERVICE_UNKNOWN
        return SERVING if self._is_ready() and not self._ended.is_set() else NOT_SERVING

    async def _check(self, body: bytes, context: Context) -> bytes:
        service = await _read(body, context)
        status = self._status(service)
        if status == SERVICE_UNKNOWN:
            error = NotFound(f"there is no service {service[:60]!r}: ask for {INFERENCE}, or for nothing")
            await context.abort(code_of(error.status), str(error))
        return _response(status)

    async def _watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        service = await _read(body, context)
        told = ""
        while not self._ended.is_set():
            if (status := self._status(service)) != told:
                yield _response(told := status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._look_s)
        if (status := self._status(service)) != told:
            yield _response(status)


async def _read(body: bytes, context: Context) -> str:
    try:
        service: str = parse(HealthRequest, body).service
    except RequestError as error:
        await context.abort(code_of(error.status), str(error))
    return service


def _response(status: str) -> bytes:
    body: bytes = HealthResponse(status=status).SerializeToString()
    return body
