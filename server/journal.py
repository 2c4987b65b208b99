"""What is noted of every request, however it is answered: an id, a line in the log, and the counts."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from server.metrics import Metrics

logger = logging.getLogger("server.requests")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class Record:
    """What is known of a request by its end.

    Attributes:
        id: the client's `X-Request-Id`, or one made here.
        route: the path's pattern, as soon as it is known; strangers cannot make series of it.
        fields: for the log, beside method, path, status and duration.
        began: when it came, on the clock of `time.perf_counter`.
    """

    id: str
    route: str = "other"
    fields: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)


class Journal:
    """Names requests as they come, and logs and counts them as they end.

    Args:
        metrics: gives what counts them; asked each time, since an application can live more than once.
    """

    def __init__(self, metrics: Callable[[], Metrics]) -> None:
        self._metrics = metrics
        self._prefix, self._numbers = secrets.token_hex(5), itertools.count(1)

    def begin(self, headers: Iterable[tuple[bytes, bytes]]) -> Record:
        """Count a request in.

        Args:
            headers: of the request, names in lower case.
        """
        self._metrics().arrived()
        return Record(self._id_of(headers))

    def end(self, record: Record, method: str, path: str, status: int) -> str:
        """Count it out, and log it.

        Args:
            record: of the request.
            method: as the client wrote it.
            path: of the address.
            status: of the answer; 0 if there was none.

        Returns:
            The method, or `other` where it is none that is known: strangers cannot make series of it.
        """
        seconds = time.perf_counter() - record.began
        known = method if method in METHODS else "other"
        self._metrics().answered(record.route, known, status, seconds)
        if logger.isEnabledFor(level := _level(status)):
            line = {"method": method, "path": path, "status": status, "duration_ms": round(seconds * 1000, 3)}
            logger.log(level, "request", extra={"fields": {**line, **record.fields}})
        return known

    def logs_success(self) -> bool:
        """Whether requests that go well are logged at all."""
        return logger.isEnabledFor(_level(200))

    def _id_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        for name, value in headers:
            if name == b"x-request-id":
                given = value.decode("latin-1")
                if GOOD_ID.fullmatch(given):
                    return given
        return f"{self._prefix}-{next(self._numbers):x}"


def _level(status: int) -> int:
    """A request that went well is told of at debug, so that a busy server is not busy with its log."""
    return logging.DEBUG if status < 400 else logging.INFO
