"""Requests as OpenTelemetry spans: one for the request, and below it one for decoding and one a stage.

A stage's span reaches from the moment the first of the request's images joins its queue to the end of the last run that
held one of them; a large request may take several runs, so what is said of a run is a list. A run that is still under
way when its request is given up is not told of. Whether a request is traced is decided at its start, by the
`traceparent` header if it has one. No provider is made global: this one is for these spans alone.

Names of attributes follow OpenTelemetry's conventions for HTTP servers where these say something; the rest begin with
`rescade.`. The standard `OTEL_` variables for headers, timeouts, queues and resources work as always.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.tracing import Run, Trace, current

logger = logging.getLogger(__name__)

FLUSH_S = 3.0
SERVER_ERRORS = 500
PARENT = (b"traceparent", b"tracestate")
NOTED = ("model", "version", "threshold", "images", "exits")


class Spans:
    """Makes spans of requests, and sends them from a thread of its own.

    A collector that is slow, away or broken costs spans, and a line in the log, but never a request.

    Args:
        exporter: sends them.
        ratio: of the requests to trace, where the client has not decided that.
    """

    on = True

    def __init__(self, exporter: SpanExporter, ratio: float = 1.0) -> None:
        resource = Resource.create({"service.name": "rescade", "process.pid": os.getpid()})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=resource.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rescade")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace | None:
        """Begin the span of a POST request, if it is to be traced; health checks and scrapes never are."""
        if method != "POST":
            return None
        now_ns = time.time_ns()
        carrier: dict[str, list[str]] = {}
        for name, value in headers:
            if name in PARENT:
                carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
        parent = self._propagator.extract(carrier)
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, start_time=now_ns)
        return _SpanTrace(self._tracer, span, now_ns) if span.is_recording() else None

    def close(self) -> None:
        """Send what is not sent yet, for a few seconds at most."""
        thread = threading.Thread(target=self._shut_down, daemon=True)
        thread.start()
        thread.join(FLUSH_S)

    def _shut_down(self) -> None:
        try:
            self._provider.shutdown()
        except Exception:
            logger.exception("the last spans could not be sent")


class _SpanTrace(Trace):
    """A request that is traced, and its span."""

    __slots__ = ("_epoch_ns", "_span", "_token", "_tracer")

    def __init__(self, tracer: OtelTracer, span: Span, now_ns: int) -> None:
        super().__init__()
        self._tracer, self._span = tracer, span
        self._epoch_ns = now_ns - round(time.monotonic() * 1e9)
        self._token = current.set(self)

    def end(self, method: str, route: str, status: int, request_id: str, error: str | None = None) -> None:
        """Make the spans of what was noted, and hand them over."""
        current.reset(self._token)
        ended_ns = self._ns(time.monotonic())
        if self.decode is not None:
            self._child("decode", *self.decode, {})
        for stage, runs in groupby(sorted(self.runs, key=attrgetter("stage")), attrgetter("stage")):
            self._stage(stage, list(runs))
        self._span.update_name(f"{method} {route}")
        known = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status or None,
            "error.type": error or (str(status) if status >= SERVER_ERRORS else None),
            "rescade.request_id": request_id,
            **{f"rescade.{name}": getattr(self, name) for name in NOTED},
        }
        self._span.set_attributes({name: value for name, value in known.items() if value is not None})
        if status >= SERVER_ERRORS:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(ended_ns)

    def _stage(self, stage: int, runs: Sequence[Run]) -> None:
        attributes = {
            "rescade.stage": stage,
            "rescade.images": sum(run.images for run in runs),
            "rescade.batch_sizes": [run.size for run in runs],
            "rescade.reasons": [run.reason for run in runs],
            "rescade.queue_seconds": [max(0.0, run.began - run.joined) for run in runs],
            "rescade.run_seconds": [run.ended - run.began for run in runs],
        }
        self._child(f"stage {stage}", min(run.joined for run in runs), runs[-1].ended, attributes)

    def _child(self, name: str, began: float, ended: float, attributes: Mapping[str, Any]) -> None:
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._ns(began))
        span.end(self._ns(ended))

    def _ns(self, at: float) -> int:
        return self._epoch_ns + round(at * 1e9)


def over_http(endpoint: str, ratio: float) -> Spans:
    """Send spans by OTLP over HTTP.

    Args:
        endpoint: of a collector; where it has no path, `/v1/traces` is added.
        ratio: of the requests to trace, where the client has not decided that.
    """
    path = urlsplit(endpoint).path.strip("/")
    url = endpoint if path else f"{endpoint.rstrip('/')}/v1/traces"
    return Spans(OTLPSpanExporter(url), ratio)
