"""Around every request: an id, a line in the log, the counts, and a plain answer where something unforeseen happens."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.logs import request_id

logger = logging.getLogger(__name__)

PATHS = frozenset({"/predict", "/health/live", "/health/ready", "/bundle", "/metrics", "/docs", "/openapi.json"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass
class Record:
    """What is known of a request by its end.

    Attributes:
        id: the client's `X-Request-Id`, or one made here.
        fields: for the log, beside method, path, status and duration.
    """

    id: str
    fields: dict[str, Any] = field(default_factory=dict)


def error_response(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """The one shape of every error."""
    error = {"code": code, "message": message, "request_id": request_id.get()}
    return Response(json.dumps({"error": error}), status, headers, "application/json")


class Observe:
    """ASGI middleware that names, logs and counts requests.

    Args:
        app: what answers them; its state holds the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see to what surrounds it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        record = scope["rescade"] = Record(_id_of(Headers(scope=scope)))
        token = request_id.set(record.id)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.id
            await send(message)

        metrics = scope["app"].state.service.metrics
        metrics.arrived()
        try:
            await self._app(scope, receive, send_named)
        except Exception:
            logger.exception("unforeseen error")
            if not status:
                response = error_response(500, "internal", "the server made a mistake; its log has the request id")
                await response(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in PATHS else "other"
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics.answered(path, method, status, seconds)
            line = {"method": scope["method"], "path": scope["path"], "status": status}
            duration = {"duration_ms": round(seconds * 1000, 3)}
            level = logging.INFO if path in ("/predict", "other") else logging.DEBUG
            logger.log(level, "request", extra={"fields": {**line, **duration, **record.fields}})
            request_id.reset(token)


def _id_of(headers: Headers) -> str:
    given = headers.get("X-Request-Id", "")
    return given if GOOD_ID.fullmatch(given) else secrets.token_hex(8)
