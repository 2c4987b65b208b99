"""The protocol over gRPC as its clients speak it: their own library, beside our messages in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra `clients`")
pytest.importorskip("grpc_health", reason="needs the extra `clients`")

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from cascade.exits import Floats
from server.oip.ports import Models
from server.rpc.messages import INFERENCE
from server.runtime import OnnxRuntime
from tests.builders import encoded, random_inputs, random_photo, tiny_bundle
from tests.server.grpc.harness import Client, listening, serving_both
from tests.server.harness import expected
from tests.server.oip.fakes import FakeModels

RUNTIME = OnnxRuntime(tiny_bundle())
NAMES = ("logits", "exit_stage", "energy")
Ask = Callable[..., Any]
"""Calls a method of a client by name."""


@asynccontextmanager
async def blocking(port: int) -> AsyncIterator[Ask]:
    """The client that blocks, in a thread."""
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:

        async def ask(method: str, *args: Any, **options: Any) -> Any:
            return await asyncio.to_thread(getattr(client, method), *args, **options)

        yield ask


@asynccontextmanager
async def awaiting(port: int) -> AsyncIterator[Ask]:
    """The client for asyncio."""
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:

        async def ask(method: str, *args: Any, **options: Any) -> Any:
            return await getattr(client, method)(*args, **options)

        yield ask


CLIENTS = pytest.mark.parametrize("client", [blocking, awaiting])


@asynccontextmanager
async def asking(client: Ask, models: Models | None = None, **settings: Any) -> AsyncIterator[Ask]:
    """A client of the engine, or of these models."""
    port: Any = serving_both(RUNTIME, **settings) if models is None else listening(models, **settings)
    async with port as found:
        ours: Client = found if models is not None else found[0]
        async with client(ours.port) as ask:
            yield ask


def image(array: Any, datatype: str = "FP32") -> Any:
    """An input."""
    tensor = triton.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def check(result: Any, inputs: Floats) -> None:
    """Against the reference, exactly."""
    reference = expected(RUNTIME, inputs)
    assert np.array_equal(result.as_numpy("logits"), reference.logits)
    assert np.array_equal(result.as_numpy("exit_stage"), reference.stages)
    assert np.array_equal(result.as_numpy("energy"), reference.energies)


@CLIENTS
@pytest.mark.parametrize("names", [(), NAMES, NAMES[::-1]])
async def test_inference_has_the_answers_of_replay(client: Ask, names: tuple[str, ...]) -> None:
    inputs = random_inputs(5)
    outputs = [triton.InferRequestedOutput(name) for name in names] or None
    async with asking(client) as ask:
        result = await ask("infer", "tiny", [image(inputs)], outputs=outputs, request_id="r1")
    check(result, inputs)
    response = result.get_response()
    assert response.id == "r1"
    assert not names or tuple(output.name for output in response.outputs) == names


@CLIENTS
async def test_everything_a_client_asks_about_is_answered(client: Ask) -> None:
    async with asking(client) as ask:
        assert await ask("is_server_live")
        assert await ask("is_server_ready")
        assert await ask("is_model_ready", "tiny")
        assert (await ask("get_server_metadata")).name == "rescade"
        assert (await ask("get_model_metadata", "tiny", as_json=True))["inputs"][0]["shape"] == ["-1", "3", "8", "8"]
        config = (await ask("get_model_config", "tiny")).config
        counts = (await ask("get_inference_statistics", "tiny")).model_stats
        everything = (await ask("get_inference_statistics")).model_stats
    assert (config.max_batch_size, config.input[0].data_type, list(config.output[2].dims)) == (256, 11, [1])
    assert [entry.inference_count for entry in counts] == [0]
    assert len(everything) == 4


@CLIENTS
async def test_the_repository_is_seen_and_changed(client: Ask) -> None:
    models = FakeModels()
    async with asking(client, models) as ask:
        index = await ask("get_model_repository_index")
        await ask("load_model", "cascade")
        await ask("unload_model", "cascade")
    assert [(model.name, model.state) for model in index.models] == [("cascade", "READY"), ("other", "UNAVAILABLE")]
    assert models.calls == ["load cascade", "unload cascade"]


@CLIENTS
async def test_encoded_images_are_classified(client: Ask) -> None:
    array = np.array([encoded(random_photo(seed)) for seed in range(2)], object)
    best = [triton.InferRequestedOutput("probabilities", class_count=2)]
    async with asking(client) as ask:
        named = (await ask("infer", "tiny", [image(array, "BYTES")], outputs=best)).as_numpy("probabilities")
        labels = (await ask("infer", "tiny", [image(array, "BYTES")])).as_numpy("label")
    assert named.shape == (2, 2)
    assert [row[0].decode().split(":")[2] for row in named] == [label.decode() for label in labels]


@CLIENTS
@pytest.mark.parametrize("kind", ["gzip", "deflate"])
async def test_messages_may_be_compressed(client: Ask, kind: str) -> None:
    inputs = random_inputs(5)
    async with asking(client) as ask:
        check(await ask("infer", "tiny", [image(inputs)], compression_algorithm=kind), inputs)


@CLIENTS
async def test_an_empty_batch_is_answered(client: Ask) -> None:
    async with asking(client) as ask:
        result = await ask("infer", "tiny", [image(random_inputs(1)[:0])])
    assert result.as_numpy("logits").shape == (0, 4)


@CLIENTS
async def test_parameters_and_limits_are_passed_on(client: Ask) -> None:
    limits = {"priority": 1, "timeout": 5_000_000, "client_timeout": 20.0}
    async with asking(client) as ask:
        result = await ask("infer", "tiny", [image(random_inputs(3))], parameters={"max_stage": 0}, **limits)
    assert result.as_numpy("exit_stage").tolist() == [0, 0, 0]


REFUSED = [
    ("nobody", random_inputs(1), {}, "NOT_FOUND", "there is no model 'nobody'"),
    ("tiny", random_inputs(1, 4), {}, "INVALID_ARGUMENT", "input 'image' is FP32 [1, 3, 4, 4]"),
    ("tiny", random_inputs(5), {}, "INVALID_ARGUMENT", "the limit is 4"),
    ("tiny", random_inputs(1), {"parameters": {"treshold": 1}}, "INVALID_ARGUMENT", "parameter 'treshold'"),
    ("tiny", random_inputs(1), {"sequence_id": 7}, "INVALID_ARGUMENT", "sequences are not offered"),
    ("tiny", random_inputs(1), {"model_version": "9"}, "NOT_FOUND", "no version '9'"),
]


@CLIENTS
@pytest.mark.parametrize(("model", "inputs", "options", "code", "text"), REFUSED, ids=[row[4] for row in REFUSED])
async def test_clients_show_our_text(
    client: Ask, model: str, inputs: Floats, options: Any, code: str, text: str
) -> None:
    async with asking(client, max_images=4) as ask:
        with pytest.raises(InferenceServerException) as caught:
            await ask("infer", model, [image(inputs)], **options)
    assert caught.value.status() == f"StatusCode.{code}"
    assert text in caught.value.message()


@CLIENTS
async def test_what_is_not_offered_is_said_to_be(client: Ask) -> None:
    async with asking(client) as ask:
        with pytest.raises(InferenceServerException) as caught:
            await ask("get_system_shared_memory_status")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_the_standard_health_client_is_answered() -> None:
    models = FakeModels()
    async with listening(models) as client:
        stub = health_pb2_grpc.HealthStub(client.channel)
        for service in ("", INFERENCE):
            found = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        statuses = aiter(stub.Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        models.ready = False
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
