"""What is noted of a request that is traced, and who is told of it: nobody, or OpenTelemetry.

Spans are built after the answer has gone out, from times that were noted on the way; whoever notes them knows nothing
of OpenTelemetry, and without an endpoint no part of its SDK is loaded. Everything is noted on the clock of
`time.monotonic`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from cascade.errors import ServiceError
from cascade.exits import Threshold

PACKAGES = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"  # the extra `otel`


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a network that held images of a request.

    Attributes:
        stage: that ran.
        size: images in the batch, of whatever request.
        reason: why the batch was released.
        images: how many of them are the request's.
        joined: when the first of these joined the stage's queue.
        began, ended: when it ran.
    """

    stage: int
    size: int
    reason: str
    images: int
    joined: float
    began: float
    ended: float


@dataclass(slots=True)
class Trace:
    """What is noted of one request; each is None before it is known.

    Attributes:
        model: that is asked.
        version: of it.
        threshold: energy that has to be exceeded.
        images: in the request.
        exits: images that left, by stage.
        decode: when decoding began and ended.
        runs: of the networks, in order.
    """

    model: str | None = None
    version: str | None = None
    threshold: Threshold | None = None
    images: int | None = None
    exits: list[int] | None = None
    decode: tuple[float, float] | None = None
    runs: list[Run] = field(default_factory=list)

    def decoded(self, seconds: float, images: int, threshold: Threshold) -> None:
        """Note that decoding has just ended, and what is asked of the engine."""
        now = time.monotonic()
        self.decode = (now - seconds, now)
        self.images, self.threshold = images, threshold

    def end(self, method: str, route: str, status: int, request_id: str, error: str | None = None) -> None:
        """Tell of a request that has been answered; what is only noted tells nobody.

        Args:
            method: of the request.
            route: a path of ours, so that names stay few.
            status: HTTP status; 0 if nothing was answered.
            request_id: that the log and the client know it by.
            error: code of what went wrong.
        """


current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def note(stage: int, reason: str, samples: Sequence[tuple[Trace | None, float]], began: float, ended: float) -> None:
    """Note a run with each request that is traced and had images in it.

    Args:
        stage: that ran.
        reason: why the batch was released.
        samples: of the batch: whose it is, if that is traced, and when it joined the stage's queue.
        began: when the run did.
        ended: when the run did.
    """
    shares: dict[int, tuple[Trace, list[float]]] = {}
    for trace, joined in samples:
        if trace is not None:
            shares.setdefault(id(trace), (trace, []))[1].append(joined)
    for trace, times in shares.values():
        trace.runs.append(Run(stage, len(samples), reason, len(times), min(times), began, ended))


class Tracer(Protocol):
    """Whoever is told of requests.

    Attributes:
        on: whether to ask it at all; the one thing that is looked at in every request.
    """

    on: bool

    def begin(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace | None:
        """Say where to note what becomes of a request, here and as `current` until its end; None if it is not traced.

        Args:
            method: of the request.
            headers: of the request, names in lower case.
        """

    def close(self) -> None:
        """Send what is not sent yet, for a few seconds at most."""


class Silence:
    """Traces nothing."""

    on = False

    def begin(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace | None:
        """Nothing is traced."""
        return None

    def close(self) -> None:
        """Nothing is to be sent."""


def open_tracer(endpoint: str | None, ratio: float) -> Tracer:
    """Make what the settings ask for.

    Args:
        endpoint: address of a collector; None for silence.
        ratio: of the requests to trace, where the client has not decided that.

    Raises:
        ServiceError: there is an endpoint, and OpenTelemetry is not installed.
    """
    if endpoint is None:
        return Silence()
    try:
        from server.spans import over_http
    except ImportError as error:
        message = f"otel_endpoint needs packages that are not installed: pip install {PACKAGES}, or leave it out"
        raise ServiceError(message) from error
    return over_http(endpoint, ratio)
