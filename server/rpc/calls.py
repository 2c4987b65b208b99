"""One call: its id, its line in the log, its counts, its trace, and a plain refusal for all that goes wrong.

Every method is registered as one that takes a stream of messages, which looks the same on the wire: so a call is let
in, or refused, before its message is read, and gRPC's own flow control holds back whoever would send too much.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import grpc
from starlette.requests import Request
from starlette.types import Message as Event

from cascade.errors import CascadeError
from server.journal import GOOD_ID, Record
from server.logs import request_id
from server.oip.errors import INTERNAL
from server.replies import CLIENT_CLOSED_REQUEST
from server.rpc.errors import code_of
from server.rpc.port import Meter
from server.tracing import Tracer

logger = logging.getLogger(__name__)

ID = "x-request-id"
ERROR_CODE = "x-error-code"
PUSHBACK = "grpc-retry-pushback-ms"  # what retrying clients of gRPC look for
Context = Any  # of grpc.aio, which is not typed


class Call:
    """A call as the HTTP request that it is.

    Args:
        path: of the method.
        messages: that the client sends; the first one is the request.
        context: of the call.
        id_: to know it by.

    Attributes:
        request: for those who know requests: metadata as headers, the message as body.
    """

    def __init__(self, path: str, messages: AsyncIterator[bytes], context: Context, id_: str) -> None:
        self._messages, self._context, self._was_read = messages, context, False
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": _headers(context),
            "rescade": Record(id_, path),
        }
        self.request = Request(scope, self._receive)

    @property
    def time_left_s(self) -> float | None:
        """Seconds until the client stops waiting; None where it has not said."""
        left: float | None = self._context.time_remaining()
        return left

    async def _receive(self) -> Event:
        """The message, then nothing more: gRPC itself ends the call of a client that goes away."""
        if self._was_read:
            await asyncio.get_running_loop().create_future()
        self._was_read = True
        async for message in self._messages:
            return {"type": "http.request", "body": message}
        return {"type": "http.request", "body": b""}


Answer = Callable[[Call], Awaitable[bytes]]


class Desk:
    """Where calls are received and answers handed out.

    Args:
        meter: counts them.
        tracer: told of them.
    """

    def __init__(self, meter: Meter, tracer: Tracer) -> None:
        self._meter, self._tracer = meter, tracer
        self._prefix, self._numbers = secrets.token_hex(5), itertools.count(1)

    def handler(self, path: str, answer: Answer) -> Any:
        """What gRPC calls for a method.

        Args:
            path: of the method.
            answer: gives the bytes of the response, or raises.
        """

        async def handle(messages: AsyncIterator[bytes], context: Context) -> Any:
            return await self._handle(Call(path, messages, context, self._id_of(context)), context, answer)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _handle(self, call: Call, context: Context, answer: Answer) -> Any:
        record: Record = call.request.scope["rescade"]
        token = request_id.set(record.id)
        trace = self._tracer.begin("POST", call.request.scope["headers"]) if self._tracer.on else None
        began, status = time.perf_counter(), CLIENT_CLOSED_REQUEST
        self._meter.arrived()
        try:
            body = await answer(call)
            context.set_trailing_metadata(((ID, record.id),))
            status = HTTPStatus.OK
            return body
        except CascadeError as error:
            status, record.fields["error"] = error.status, error.code
            return await _refuse(context, record.id, error)
        except Exception:
            logger.exception("unforeseen error")
            status, record.fields["error"] = HTTPStatus.INTERNAL_SERVER_ERROR, "internal"
            return await _refuse(context, record.id, CascadeError(INTERNAL), "internal")
        finally:
            seconds = time.perf_counter() - began
            self._meter.answered(record.route, "POST", int(status), seconds)
            if trace is not None:
                trace.end("POST", record.route, int(status), record.id, record.fields.get("error"))
            _log(record, int(status), seconds)
            request_id.reset(token)

    def _id_of(self, context: Context) -> str:
        for name, value in context.invocation_metadata() or ():
            if name == ID and isinstance(value, str) and GOOD_ID.fullmatch(value):
                return value
        return f"{self._prefix}-g{next(self._numbers):x}"


def _headers(context: Context) -> list[tuple[bytes, bytes]]:
    """Metadata that is text; what is binary is nothing that we look for."""
    pairs = context.invocation_metadata() or ()
    return [(name.encode("latin-1"), value.encode("utf-8")) for name, value in pairs if isinstance(value, str)]


async def _refuse(context: Context, id_: str, error: CascadeError, code: str | None = None) -> Any:
    """End a call with an error; gRPC raises its own exception for it."""
    trailing = [(ID, id_), (ERROR_CODE, code or error.code)]
    if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        trailing.append((PUSHBACK, str(max(1, math.ceil(getattr(error, "retry_after_s", 1.0) * 1000)))))
    return await context.abort(code_of(error.status), str(error), tuple(trailing))


def _log(record: Record, status: int, seconds: float) -> None:
    """A call that went well is told of at debug, so that a busy server is not busy with its log."""
    level = logging.DEBUG if status < HTTPStatus.BAD_REQUEST else logging.INFO
    if logger.isEnabledFor(level):
        line = {"method": "gRPC", "path": record.route, "status": status, "duration_ms": round(seconds * 1000, 3)}
        logger.log(level, "request", extra={"fields": {**line, **record.fields}})
