"""Over the real engine: the answers of the reference, messages of any size, deadlines, cancellation and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `grpc`")
pytest.importorskip("google.protobuf", reason="needs the extra `grpc`")

import grpc
from fastapi import FastAPI

from cascade.exits import Floats
from cascade.pixels import normalise
from server.app import Service, create_app
from server.rpc.errors import Code
from server.rpc.listener import Listener
from server.rpc.messages import INFERENCE, Message
from server.runtime import OnnxRuntime
from server.tracing import Trace, current
from tests.builders import FakeRuntime, encoded, random_inputs, random_photo, tiny_bundle
from tests.server.grpc.harness import Client, connected, serving_both
from tests.server.grpc.makers import infer, raw
from tests.server.harness import expected, settings_for_tests
from tests.server.oip.makers import elements

RUNTIME = OnnxRuntime(tiny_bundle())
SURE = np.array([[[9.0, 0.0]]])


class Gate:
    """Holds networks back until it is opened."""

    def __init__(self) -> None:
        self.entered, self._opened = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, stage: int) -> None:
        self._loop.call_soon_threadsafe(self.entered.set)
        self._opened.wait(10)

    def open(self) -> None:
        self._opened.set()


class FakeTrace(Trace):
    """Tells its tracer of its end."""

    tracer: FakeTracer

    def end(self, *what: Any) -> None:
        self.tracer.ended.append(what)


class FakeTracer:
    """Traces everything."""

    on = True

    def __init__(self) -> None:
        self.traces: list[FakeTrace] = []
        self.ended: list[tuple[Any, ...]] = []

    def begin(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace:
        trace = FakeTrace()
        trace.tracer = self
        self.traces.append(trace)
        current.set(trace)
        return trace

    def close(self) -> None:
        pass


def check(response: Message, inputs: Floats, threshold: float | None = None) -> None:
    """Against the reference, exactly."""
    wanted = expected(RUNTIME, inputs, threshold)
    assert np.frombuffer(raw(response, "exit_stage"), np.int32).tolist() == wanted.stages.tolist()
    assert np.frombuffer(raw(response, "energy"), np.float64).tolist() == wanted.energies.tolist()
    assert np.array_equal(np.frombuffer(raw(response, "logits"), np.float32).reshape(-1, 4), wanted.logits)


def in_hand(app: FastAPI) -> int:
    """Images that the engine has."""
    service: Service = app.state.service
    return service.models.get().engine.in_hand


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else run until this holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0)


async def first_refusal(client: Client) -> Code:
    """Ask until that is refused."""
    async with asyncio.timeout(10):
        while True:
            try:
                await client.ask("ServerLive")
            except grpc.aio.AioRpcError as error:
                return error.code()


async def test_preprocessed_tensors_get_the_answers_of_replay() -> None:
    inputs = random_inputs(20)
    message = infer(inputs, model="tiny")
    message.parameters["threshold"].double_param = 0.7
    async with serving_both(RUNTIME) as (client, _):
        response = await client.ask("ModelInfer", message)
    check(response, inputs, 0.7)
    assert response.parameters["threshold"].double_param == 0.7


async def test_raw_pixels_are_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), np.uint8)
    async with serving_both(RUNTIME) as (client, _):
        response = await client.ask("ModelInfer", infer(pixels, "UINT8", "tiny"))
    check(response, normalise(pixels, RUNTIME.manifest.preprocess))


async def test_encoded_images_raw_and_typed_get_one_answer() -> None:
    photos = [encoded(random_photo(seed)) for seed in range(3)]
    first = infer(np.frombuffer(elements(*photos), np.uint8), "BYTES", "tiny")
    first.inputs[0].shape[:] = [3, 1]
    second = infer(np.zeros(3), "BYTES", "tiny")
    second.ClearField("raw_input_contents")
    second.inputs[0].contents.bytes_contents.extend(photos)
    async with serving_both(RUNTIME) as (client, _):
        answers = [await client.ask("ModelInfer", message) for message in (first, second)]
    assert answers[0] == answers[1]


async def test_calls_side_by_side_keep_their_answers() -> None:
    inputs = random_inputs(64)
    async with serving_both(RUNTIME) as (client, _):
        parts = [inputs[place : place + 4] for place in range(0, 64, 4)]
        calls = [client.start("ModelInfer", infer(part, model="tiny")) for part in parts]
        for part, call in zip(parts, calls, strict=True):
            check(await call, part)


async def test_a_message_may_be_as_large_as_a_body_may() -> None:
    runtime = OnnxRuntime(tiny_bundle(size=64))
    inputs = random_inputs(100, size=64)
    async with serving_both(runtime) as (client, _):
        response = await client.ask("ModelInfer", infer(inputs, model="tiny"))
    assert inputs.nbytes > 4 * 2**20
    assert list(response.outputs[0].shape) == [100, 4]


async def test_a_message_larger_than_that_is_refused() -> None:
    async with serving_both(RUNTIME, max_body_bytes=20_000) as (client, app):
        error = await client.refusal("ModelInfer", infer(random_inputs(100), model="tiny"))
        assert in_hand(app) == 0
    assert error.code() is Code.RESOURCE_EXHAUSTED


async def test_too_many_images_are_refused_with_the_limit() -> None:
    async with serving_both(RUNTIME, max_images=4) as (client, _):
        error = await client.refusal("ModelInfer", infer(random_inputs(5), model="tiny"))
    assert error.code() is Code.INVALID_ARGUMENT
    assert "limit is 4" in str(error.details())


async def test_calls_beyond_the_limit_are_refused_and_probes_are_not() -> None:
    gate = Gate()
    async with serving_both(FakeRuntime(SURE, gate), max_in_flight=1) as (client, _):
        first = client.start("ModelInfer", infer(FakeRuntime.images([0]), model="tiny"))
        await gate.entered.wait()
        error = await client.refusal("ModelInfer", infer(FakeRuntime.images([0]), model="tiny"))
        assert error.code() is Code.UNAVAILABLE
        assert (await client.ask("ServerReady")).ready
        gate.open()
        await first


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_a_client_that_goes_away_takes_its_samples_with_it(end: str) -> None:
    gate = Gate()
    async with serving_both(FakeRuntime(SURE, gate)) as (client, app):
        options: dict[str, Any] = {"timeout": 0.3} if end == "deadline" else {}
        call = client.start("ModelInfer", infer(FakeRuntime.images([0]), model="tiny"), **options)
        await gate.entered.wait()
        if end == "cancel":
            call.cancel()
        assert await call.code() is (Code.CANCELLED if end == "cancel" else Code.DEADLINE_EXCEEDED)
        service: Service = app.state.service
        await until(lambda: len(service.predictor.intake) == 0)
        gate.open()
        await until(lambda: in_hand(app) == 0)
        seen = (b'status="499"', b'status="504"') if end == "deadline" else (b'status="499"',)
        await until(lambda: any(status in service.metrics.render() for status in seen))


async def test_a_time_limit_is_kept_with_our_text() -> None:
    gate = Gate()
    async with serving_both(FakeRuntime(SURE, gate)) as (client, _):
        first = client.start("ModelInfer", infer(FakeRuntime.images([0]), model="tiny"))
        await gate.entered.wait()
        late = infer(FakeRuntime.images([0]), model="tiny")
        late.parameters["timeout"].int64_param = 100_000
        error = await client.refusal("ModelInfer", late)
        gate.open()
        await first
    assert error.code() is Code.DEADLINE_EXCEEDED
    assert "in time" in str(error.details())


async def test_nothing_is_answered_before_the_warm_up_has_ended() -> None:
    warming = threading.Event()

    app = create_app(settings_for_tests(grpc_port=0), FakeRuntime(SURE, warm=lambda: warming.wait(10)))
    async with app.router.lifespan_context(app):
        listener = app.state.service.rpc
        await until(lambda: listener.port > 0)
        async with connected(listener.port) as client:
            assert not (await client.ask("ServerReady")).ready
            error = await client.refusal("ModelInfer", infer(FakeRuntime.images([0]), model="tiny"))
        warming.set()
    assert error.code() is Code.UNAVAILABLE


async def test_what_is_in_hand_is_answered_before_the_port_is_gone() -> None:
    gate = Gate()
    async with serving_both(FakeRuntime(SURE, gate)) as (client, app):
        service: Service = app.state.service
        call = client.start("ModelInfer", infer(FakeRuntime.images([0]), model="tiny"))
        await gate.entered.wait()
        service.rpc.begin_close()
        closing = asyncio.create_task(service.rpc.close())
        assert await first_refusal(client) in (Code.UNAVAILABLE, Code.CANCELLED)  # begun as the port closed
        gate.open()
        assert len((await call).outputs) == 5
        await closing


async def test_calls_are_traced_like_requests() -> None:
    tracer = FakeTracer()
    app = create_app(settings_for_tests(grpc_port=0), RUNTIME, tracer=tracer)
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        await service.warmed.wait()
        assert isinstance(service.rpc, Listener)
        async with connected(service.rpc.port) as client:
            await client.ask("ModelInfer", infer(random_inputs(3), model="tiny"))
            await client.refusal("ModelReady", metadata=(("x-request-id", "mine"),))
    assert [ended[1:3] for ended in tracer.ended] == [
        (f"/{INFERENCE}/ModelInfer", 200),
        (f"/{INFERENCE}/ModelReady", 404),
    ]
    assert tracer.ended[1][3:] == ("mine", "unknown_model")
    assert tracer.traces[0].images == 3


async def test_calls_are_counted_beside_requests() -> None:
    async with serving_both(RUNTIME) as (client, app):
        await client.ask("ModelInfer", infer(random_inputs(3), model="tiny"))
        (counts,) = (await client.ask("ModelStatistics", name="tiny")).model_stats
        text = app.state.service.metrics.render().decode()
    assert (counts.inference_count, counts.inference_stats.success.count) == (3, 1)
    assert '{method="POST",path="/inference.GRPCInferenceService/ModelInfer",status="200"} 1.0' in text
