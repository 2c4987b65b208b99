"""Spans: what a request's tree looks like, who decides that there is one, and that tracing never harms an answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from server.__main__ import serve
from server.app import create_app
from server.engine import Engine
from server.metrics import Metrics
from server.scheduler import Limits
from server.tracing import Silence, Trace, open_tracer
from tests.builders import FakeRuntime, write_tiny_bundle
from tests.server.harness import settings_for_tests

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ROOT = Path(__file__).parents[2]
SURE, UNSURE = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
TABLE = np.array([[SURE, UNSURE, UNSURE], [SURE, SURE, UNSURE], [SURE, SURE, SURE]])
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

QUIET = """
import asyncio, sys
import server.tracing
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
from tests.builders import FakeRuntime
from tests.server.harness import serving

async def ask():
    async with serving() as client:
        inputs = FakeRuntime.images([0]).tolist()
        response = await client.post("/predict", json={"inputs": inputs}, headers={"traceparent": sys.argv[1]})
        assert response.status_code == 200

asyncio.run(ask())
print(sorted(sys.modules))
"""


def ask(rows: Sequence[int]) -> dict[str, Any]:
    return {"inputs": FakeRuntime.images(rows).tolist()}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()  # type: ignore[no-any-return]


@asynccontextmanager
async def traced(
    exporter: Any, runtime: FakeRuntime | None = None, ratio: float = 1.0, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that is traced; whatever it was told is exported by the end."""
    from server.spans import Spans

    app = create_app(settings_for_tests(**settings), runtime or FakeRuntime(TABLE), tracer=Spans(exporter, ratio))
    async with app.router.lifespan_context(app):
        await app.state.service.warmed.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            yield client


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_request_is_one_tree_with_a_span_for_each_stage_it_reached(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter, threshold=0.7) as client:
        await client.post("/predict", json=ask([0, 1, 2]), headers={"X-Request-Id": "r1"})
    spans = named(exporter)
    root = spans.pop("POST /predict")
    assert root.parent is None
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "rescade.model": "tiny",
        "rescade.version": "1",
        "rescade.threshold": 0.7,
        "rescade.images": 3,
        "rescade.exits": (1, 1, 1),
        "rescade.request_id": "r1",
    }
    assert list(spans) == ["decode", "stage 0", "stage 1", "stage 2"]
    assert {span.parent.span_id for span in spans.values() if span.parent} == {root.context.span_id}
    assert {span.context.trace_id for span in spans.values()} == {root.context.trace_id}
    stages = [attributes(spans[f"stage {number}"]) for number in range(3)]
    assert [stage["rescade.stage"] for stage in stages] == [0, 1, 2]
    assert [stage["rescade.images"] for stage in stages] == [3, 2, 1]
    assert [stage["rescade.batch_sizes"] for stage in stages] == [(3,), (2,), (1,)]
    assert [stage["rescade.reasons"] for stage in stages] == [("idle",)] * 3
    assert all(stage["rescade.queue_seconds"][0] >= 0 for stage in stages)
    assert all(stage["rescade.run_seconds"][0] > 0 for stage in stages)


async def test_spans_follow_each_other_within_their_request(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter) as client:
        await client.post("/predict", json=ask([2]))
    spans = named(exporter)
    root = spans.pop("POST /predict")
    times = [root.start_time, *(time for span in spans.values() for time in (span.start_time, span.end_time))]
    assert times == sorted(time for time in times if time is not None)
    assert spans["stage 2"].end_time <= root.end_time  # type: ignore[operator]


async def test_a_request_of_several_batches_has_one_span_a_stage(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter, max_batch=2) as client:
        await client.post("/predict", json=ask([2, 0, 2]))
    spans = named(exporter)
    assert len(spans) == len(exporter.get_finished_spans()) == 5
    assert attributes(spans["stage 0"])["rescade.batch_sizes"] == (2, 1)
    assert attributes(spans["stage 0"])["rescade.reasons"] == ("full", "idle")
    assert attributes(spans["stage 0"])["rescade.images"] == 3


async def test_the_callers_trace_goes_on(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter, ratio=0.0) as client:
        await client.post("/predict", json=ask([0]), headers={"traceparent": CALLER + "1", "tracestate": "a=b"})
    root = named(exporter)["POST /predict"]
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == tuple(CALLER.split("-")[1:3])
    assert root.context.trace_state == {"a": "b"}


SILENT: dict[str, tuple[float, dict[str, str]]] = {
    "a ratio of none": (0.0, {}),
    "a caller that is not traced": (1.0, {"traceparent": CALLER + "0"}),
}


@pytest.mark.parametrize("case", SILENT)
async def test_a_request_that_is_not_sampled_has_no_span(exporter: InMemorySpanExporter, case: str) -> None:
    ratio, headers = SILENT[case]
    async with traced(exporter, ratio=ratio) as client:
        assert (await client.post("/predict", json=ask([0]), headers=headers)).status_code == 200
    assert exporter.get_finished_spans() == ()


async def test_a_traceparent_that_is_none_begins_a_trace(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter) as client:
        await client.post("/predict", json=ask([0]), headers={"traceparent": "nonsense"})
    assert named(exporter)["POST /predict"].parent is None


async def test_health_checks_and_scrapes_are_not_traced(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter) as client:
        await client.get("/health/live")
        await client.get("/metrics")
    assert exporter.get_finished_spans() == ()


async def test_what_a_client_did_wrong_is_told_and_is_no_error_of_the_server(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter) as client:
        await client.post("/predict", content=b"")
        await client.post("/nowhere")
    first, second = exporter.get_finished_spans()
    assert (first.name, attributes(first)["http.response.status_code"]) == ("POST /predict", 415)
    assert attributes(first)["error.type"] == "unsupported_type"
    assert (second.name, attributes(second)["http.response.status_code"]) == ("POST other", 404)
    assert [span.status.status_code.name for span in (first, second)] == ["UNSET", "UNSET"]


async def test_a_run_that_failed_is_told(exporter: InMemorySpanExporter) -> None:
    async with traced(exporter, FakeRuntime(TABLE, lambda _: 1 / 0)) as client:
        await client.post("/predict", json=ask([0]))
    spans = named(exporter)
    root = spans["POST /predict"]
    assert (root.status.status_code.name, attributes(root)["error.type"]) == ("ERROR", "stage_failed")
    assert attributes(root)["rescade.model"] == "tiny"
    assert attributes(spans["stage 0"])["rescade.batch_sizes"] == (1,)


async def test_what_nobody_foresaw_is_told_by_its_status(exporter: InMemorySpanExporter) -> None:
    from server.spans import Spans

    app = create_app(settings_for_tests(), FakeRuntime(TABLE), tracer=Spans(exporter))

    @app.post("/broken")
    async def broken() -> None:
        raise KeyError

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")
    async with app.router.lifespan_context(app), client:
        await client.post("/broken")
    (root,) = exporter.get_finished_spans()
    assert (root.status.status_code.name, attributes(root)["error.type"]) == ("ERROR", "500")


async def test_a_request_by_the_open_inference_protocol_is_the_same_tree(exporter: InMemorySpanExporter) -> None:
    images = FakeRuntime.images([0, 2])
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    async with traced(exporter) as client:
        await client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    spans = named(exporter)
    root = attributes(spans.pop("POST /v2/models/{name}/infer"))
    assert (root["rescade.model"], root["rescade.images"], root["rescade.exits"]) == ("tiny", 2, (1, 0, 1))
    assert list(spans) == ["decode", "stage 0", "stage 1", "stage 2"]


async def test_batch_mates_are_noted_each_with_its_own_share() -> None:
    runtime, trace = FakeRuntime(TABLE), Trace()
    engine = Engine(runtime, Limits(9, 9, 0), Metrics())
    await engine.warm_up()
    await asyncio.gather(
        engine.predict(runtime.images([0]), 0.6),
        engine.predict(runtime.images([1, 0]), 0.6, trace=trace),
    )
    await engine.predict(runtime.images([2]), 0.6)
    engine.close()
    assert [(run.stage, run.size, run.images) for run in trace.runs] == [(0, 3, 2), (1, 1, 1)]
    assert all(run.joined <= run.began <= run.ended for run in trace.runs)


def test_nothing_of_opentelemetry_is_loaded_where_no_endpoint_is_named() -> None:
    found = subprocess.run(
        [sys.executable, "-c", QUIET, CALLER + "1"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    for name in ("opentelemetry.sdk", "opentelemetry.exporter", "server.spans"):
        assert f"'{name}" not in found.stdout


async def test_silence_traces_nothing() -> None:
    tracer = open_tracer(None, 1.0)
    assert isinstance(tracer, Silence)
    assert not tracer.on
    assert tracer.begin("POST", []) is None
    tracer.close()


class Broken:
    """Fails, and waits before that if told to."""

    def __init__(self, held: threading.Event | None = None) -> None:
        self.held, self.asked = held, threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> Any:
        self.asked.set()
        if self.held is not None:
            self.held.wait(10)
        raise OSError("nobody listens")

    def shutdown(self) -> None:
        raise OSError("nobody ever listened")


async def test_an_exporter_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("opentelemetry.sdk")
    broken = Broken()
    async with traced(broken) as client:
        statuses = [(await client.post("/predict", json=ask([0]))).status_code for _ in range(3)]
    assert statuses == [200, 200, 200]
    assert broken.asked.is_set()
    assert "the last spans could not be sent" in caplog.messages


async def test_an_exporter_that_hangs_holds_up_neither_an_answer_nor_for_long_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setattr("server.spans.FLUSH_S", 0.05)
    held = threading.Event()
    broken = Broken(held)
    async with traced(broken) as client:
        assert (await client.post("/predict", json=ask([0]))).status_code == 200
    assert broken.asked.wait(10)
    held.set()


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Somebody who takes spans: an address, and where they were sent with how many bytes."""
    got: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, len(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "wanted"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/in/spans", "/in/spans")])
def test_spans_are_sent_over_http_at_the_latest_when_the_server_ends(path: str, wanted: str) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with collector() as (url, got):
        tracer = open_tracer(url + path, 1.0)
        trace = tracer.begin("POST", [])
        assert trace is not None
        trace.end("POST", "/predict", 200, "r1")
        tracer.close()
    assert [path for path, size in got if size > 100] == [wanted]


@pytest.mark.usefixtures("logging_as_it_was")
def test_an_endpoint_without_the_packages_it_needs_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    monkeypatch.delitem(sys.modules, "server.spans", raising=False)
    monkeypatch.setitem(sys.modules, EXPORTER, None)
    arguments = [str(tmp_path / "tiny"), "--port", "0", "--otel-endpoint", "http://collector:4318"]
    result = CliRunner().invoke(serve, arguments)
    assert result.exit_code == 1
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in result.stderr


async def test_what_is_only_noted_tells_nobody() -> None:
    Trace().end("POST", "/predict", 200, "r1")
