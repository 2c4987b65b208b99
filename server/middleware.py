"""Around every request: an id, a line in the log, the counts, and a plain answer where something unforeseen happens.

What asks a model is answered here and now, by whoever `create_app` names, without a walk through the framework's own
layers, which take as long as a light network does. Everything else goes the usual way.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from starlette.datastructures import State
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascade.errors import CascadeError
from server.logs import request_id
from server.oip.errors import error_body
from server.tracing import Silence, Tracer

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
CLIENT_CLOSED_REQUEST = 499
OIP = "/v2"


@dataclass(slots=True)
class Record:
    """What is known of a request by its end.

    Attributes:
        id: the client's `X-Request-Id`, or one made here.
        route: the path's pattern, as soon as it is known; strangers cannot make series of it.
        fields: for the log, beside method, path, status and duration.
    """

    id: str
    route: str = "other"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        status: HTTP status.
        body: all of it.
        headers: beside content type and length; names in lower case.
        media_type: of the body.
    """

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    media_type: bytes = b"application/json"

    async def send(self, send: Send) -> None:
        """Send it."""
        length = str(len(self.body)).encode()
        headers = [(b"content-type", self.media_type), (b"content-length", length), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def response(self) -> Response:
        """The same for the framework."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        return Response(self.body, self.status, headers, self.media_type.decode("latin-1"))


Handler = Callable[[Scope, Receive], Awaitable[Reply]]


def error_reply(error: CascadeError) -> Reply:
    """The one shape of every error."""
    retry_after_s = getattr(error, "retry_after_s", 1.0)
    headers = []
    if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after_s))).encode()))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"ApiKey"))
    return failure(error.status, error.code, str(error), headers)


def unforeseen() -> Reply:
    """The answer where there should have been another; the log says more."""
    return failure(500, "internal", "the server made a mistake; its log has the request id")


def failure(status: int, code: str, message: str, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    """An answer that is no success."""
    error = {"code": code, "message": message, "request_id": request_id.get()}
    return Reply(status, orjson.dumps({"error": error}), headers or [])


class Shortcuts:
    """Handlers by path.

    Args:
        handlers: by pattern; `{name}` in it stands for a part of a path.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._plain = {pattern: handler for pattern, handler in handlers.items() if "{" not in pattern}
        self._others = [(_compiled(pattern), pattern, handlers[pattern]) for pattern in handlers if "{" in pattern]

    def find(self, path: str) -> tuple[str, Handler, dict[str, str]] | None:
        """The pattern that fits a path, its handler, and what its names stand for; None if there is no such pattern."""
        if (handler := self._plain.get(path)) is not None:
            return path, handler, {}
        for compiled, pattern, handler in self._others:
            if (found := compiled.fullmatch(path)) is not None:
                return pattern, handler, found.groupdict()
        return None


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))


class Observe:
    """Stands before the framework: names, logs and counts requests, and answers some of them itself.

    Args:
        app: what answers the rest.
        state: of the application; holds the service, once there is one.
        handlers: by pattern of a path, of POST requests; each finds what the names stand for in `path_params`.
        check: looks at a request before anything else does, and raises what it is refused with.
        tracer: told of requests; default nobody.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        handlers: Mapping[str, Handler],
        check: Callable[[Scope], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._app, self._state, self._check = app, state, check
        self._shortcuts = Shortcuts(handlers)
        self._tracer = Silence() if tracer is None else tracer
        self._prefix, self._numbers = secrets.token_hex(5), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see to what surrounds it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        record = scope["rescade"] = Record(self._id_of(scope))
        trace = self._tracer.begin(scope["method"], scope["headers"]) if self._tracer.on else None
        token = request_id.set(record.id)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode("latin-1"))]
            await send(message)

        metrics = self._state.service.metrics
        metrics.arrived()
        try:
            await self._answer(scope, receive, send_named, record)
        except Exception:
            logger.exception("unforeseen error")
            if not status:
                await unforeseen().send(send_named)
        finally:
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics.answered(record.route, method, status, seconds)
            if trace is not None:
                trace.end(method, record.route, status, record.id, record.fields.get("error"))
            self._log(scope, record, status, seconds)
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        reply: Reply | None = None
        try:
            self._check(scope)
            found = self._shortcuts.find(scope["path"]) if scope["method"] == "POST" else None
            if found is not None:
                record.route, handler, scope["path_params"] = found
                reply = await handler(scope, receive)
        except CascadeError as error:
            record.fields["error"] = error.code
            reply = _refusal(scope, error)
        except ClientDisconnect:
            record.fields["error"] = "client_disconnected"
            reply = Reply(CLIENT_CLOSED_REQUEST, b"")
        if reply is not None:
            await reply.send(send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            record.route = _pattern(scope)

    def _log(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        """A request that went well is told of at debug, so that a busy server is not busy with its log."""
        level = logging.DEBUG if status < HTTPStatus.BAD_REQUEST else logging.INFO
        if logger.isEnabledFor(level):
            line = {"method": scope["method"], "path": scope["path"], "status": status}
            duration = {"duration_ms": round(seconds * 1000, 3)}
            logger.log(level, "request", extra={"fields": {**line, **duration, **record.fields}})

    def _id_of(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given: str = value.decode("latin-1")
                if GOOD_ID.fullmatch(given):
                    return given
        return f"{self._prefix}-{next(self._numbers):x}"


def _refusal(scope: Scope, error: CascadeError) -> Reply:
    """An error in the shape of whatever the request spoke."""
    reply = error_reply(error)
    if scope["path"].startswith(OIP):
        return Reply(reply.status, error_body(str(error), error.code, request_id.get()), reply.headers)
    return reply


def _pattern(scope: Scope) -> str:
    """The pattern that a path was matched with, or `other`."""
    return getattr(scope.get("route"), "path", "other")
