"""Refusals in the protocol's one shape: `{"error": "<text>"}`, which clients show as it stands.

The members `code` and `request_id` beside it are ours; clients pass over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson

from server.oip.compression import ACCEPTED

RETRY_AFTER_S = "1"
INTERNAL = "the server made a mistake; its log has the request id"

_HEADERS: Mapping[int, Mapping[str, str]] = {
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: {"Accept-Encoding": ACCEPTED},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": RETRY_AFTER_S},
}


def error_body(message: str, code: str, request_id: str | None, **more: Any) -> bytes:
    """The body of a refusal.

    Args:
        message: what is wrong, where, and what to do.
        code: stable name for machines.
        request_id: as in the header X-Request-Id, if there is one.
        more: members to add.
    """
    named = {} if request_id is None else {"request_id": request_id}
    return orjson.dumps({"error": message, "code": code, **named, **more})


def error_headers(status: int) -> Mapping[str, str]:
    """Headers that belong to a refusal of this status."""
    return _HEADERS.get(status, {})
