"""Whole answers, and the one shape of those that are no success."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson
from starlette.responses import Response
from starlette.types import Send

from cascade.errors import CascadeError
from server.logs import request_id

CLIENT_CLOSED_REQUEST = 499
TRY_AGAIN = frozenset({HTTPStatus.SERVICE_UNAVAILABLE.value, HTTPStatus.TOO_MANY_REQUESTS.value})
UNAUTHORIZED = HTTPStatus.UNAUTHORIZED.value


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


def error_reply(error: CascadeError) -> Reply:
    """The one shape of every error."""
    status, headers = error.status, []
    if status in TRY_AGAIN:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(getattr(error, "retry_after_s", 1.0)))))
    elif status == UNAUTHORIZED:
        headers.append((b"www-authenticate", b"ApiKey"))
    return failure(status, error.code, str(error), headers)


def unforeseen() -> Reply:
    """The answer where there should have been another; the log says more."""
    return failure(500, "internal", "the server made a mistake; its log has the request id")


def failure(status: int, code: str, message: str, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    """An answer that is no success."""
    error = {"code": code, "message": message, "request_id": request_id.get()}
    return Reply(status, orjson.dumps({"error": error}), headers or [])
