"""Around every request: its place in the journal, a plain answer where something unforeseen happens, and a short cut.

What asks a model is answered here and now, by whoever `create_app` names, without a walk through the framework's own
layers, which take as long as a light network does. Everything else goes the usual way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascade.errors import CascadeError
from server.journal import Journal, Record
from server.logs import request_id
from server.oip.errors import error_body
from server.replies import CLIENT_CLOSED_REQUEST, Reply, error_reply, unforeseen
from server.tracing import Silence, Tracer

logger = logging.getLogger(__name__)

OIP = "/v2"

Handler = Callable[[Scope, Receive], Awaitable[Reply]]


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
        journal: told of every request.
        handlers: by pattern of a path, of POST requests; each finds what the names stand for in `path_params`.
        check: looks at a request before anything else does, and raises what it is refused with.
        tracer: told of requests; default nobody.
    """

    def __init__(
        self,
        app: ASGIApp,
        journal: Journal,
        handlers: Mapping[str, Handler],
        check: Callable[[Scope], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._app, self._journal, self._check = app, journal, check
        self._shortcuts = Shortcuts(handlers)
        self._tracer = Silence() if tracer is None else tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see to what surrounds it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope["rescade"] = self._journal.begin(scope["headers"])
        trace = self._tracer.begin(scope["method"], scope["headers"]) if self._tracer.on else None
        token = request_id.set(record.id)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode("latin-1"))]
            await send(message)

        try:
            await self._answer(scope, receive, send_named, record)
        except Exception:
            logger.exception("unforeseen error")
            if not status:
                await unforeseen().send(send_named)
        finally:
            method = self._journal.end(record, scope["method"], scope["path"], status)
            if trace is not None:
                trace.end(method, record.route, status, record.id, record.fields.get("error"))
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


def _refusal(scope: Scope, error: CascadeError) -> Reply:
    """An error in the shape of whatever the request spoke."""
    reply = error_reply(error)
    if scope["path"].startswith(OIP):
        return Reply(reply.status, error_body(str(error), error.code, request_id.get()), reply.headers)
    return reply


def _pattern(scope: Scope) -> str:
    """The pattern that a path was matched with, or `other`."""
    return getattr(scope.get("route"), "path", "other")
