"""HTTP status of an error to gRPC's code for it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TypeAlias

import grpc

Code: TypeAlias = grpc.StatusCode

_CODES: Mapping[int, Code] = {
    HTTPStatus.UNAUTHORIZED: Code.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: Code.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: Code.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: Code.DEADLINE_EXCEEDED,
    HTTPStatus.CONFLICT: Code.FAILED_PRECONDITION,
    HTTPStatus.TOO_MANY_REQUESTS: Code.RESOURCE_EXHAUSTED,
    HTTPStatus.NOT_IMPLEMENTED: Code.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: Code.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: Code.DEADLINE_EXCEEDED,
}


def code_of(status: int) -> Code:
    """The code of an error.

    Args:
        status: as HTTP has it, 400 or more.
    """
    other = Code.INTERNAL if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Code.INVALID_ARGUMENT
    return _CODES.get(status, other)
