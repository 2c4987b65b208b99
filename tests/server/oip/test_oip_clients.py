"""The protocol as its clients speak it: their own libraries, over real connections to a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.http", reason="needs the extra `clients`")

import tritonclient.http as http
import tritonclient.http.aio as http_aio
import uvicorn
from tritonclient.utils import InferenceServerException

from cascade.exits import Floats
from server.app import create_app
from server.port import listen
from server.runtime import OnnxRuntime
from tests.builders import encoded, random_inputs, random_photo, tiny_bundle
from tests.server.harness import expected, settings_for_tests

RUNTIME = OnnxRuntime(tiny_bundle())
NAMES = ("logits", "exit_stage", "energy")
Ask = Callable[..., Any]
"""Calls a method of a client by name."""


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[str]:
    """Host and port of a server that is warm."""
    given = settings_for_tests(port=0, **settings)
    app = create_app(given, RUNTIME)
    with listen(given.host, given.port) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        serving = asyncio.create_task(server._serve([listener]))  # without handlers for signals
        while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        await app.state.service.warmed.wait()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def blocking(address: str) -> AsyncIterator[Ask]:
    """The client that blocks, in a thread of its own for each call."""

    async def ask(method: str, *args: Any, **options: Any) -> Any:
        def call() -> Any:
            client = http.InferenceServerClient(address)
            try:
                return getattr(client, method)(*args, **options)
            finally:
                client.close()

        return await asyncio.to_thread(call)

    yield ask


@asynccontextmanager
async def awaiting(address: str) -> AsyncIterator[Ask]:
    """The client for asyncio."""
    async with http_aio.InferenceServerClient(address) as client:

        async def ask(method: str, *args: Any, **options: Any) -> Any:
            return await getattr(client, method)(*args, **options)

        yield ask


CLIENTS = pytest.mark.parametrize("client", [blocking, awaiting])


def image(array: Any, datatype: str = "FP32", binary: bool = True) -> Any:
    """An input."""
    tensor = http.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def wanted(form: str) -> Any:
    """Outputs: none listed, or some of them in one form."""
    if form == "none listed":
        return None
    return [http.InferRequestedOutput(name, binary_data=form == "binary") for name in NAMES]


def check(result: Any, inputs: Floats) -> None:
    """Against the reference, exactly."""
    reference = expected(RUNTIME, inputs)
    assert np.array_equal(result.as_numpy("logits"), reference.logits)
    assert np.array_equal(result.as_numpy("exit_stage"), reference.stages)
    assert np.array_equal(result.as_numpy("energy"), reference.energies)


@CLIENTS
@pytest.mark.parametrize("form", ["none listed", "binary", "JSON"])
@pytest.mark.parametrize("binary", [True, False])
async def test_every_form_of_input_and_output_has_one_answer(client: Ask, binary: bool, form: str) -> None:
    inputs = random_inputs(5)
    async with served() as address, client(address) as ask:
        result = await ask("infer", "tiny", [image(inputs, binary=binary)], outputs=wanted(form), request_id="r1")
    check(result, inputs)
    assert result.get_response()["id"] == "r1"


@CLIENTS
@pytest.mark.parametrize("kind", ["gzip", "deflate"])
async def test_bodies_may_be_compressed_both_ways(client: Ask, kind: str) -> None:
    inputs = np.zeros((256, 3, 8, 8), np.float32)
    compression = {"request_compression_algorithm": kind, "response_compression_algorithm": kind}
    async with served() as address, client(address) as ask:
        result = await ask("infer", "tiny", [image(inputs)], outputs=wanted("JSON"), **compression)
    check(result, inputs)


@CLIENTS
async def test_everything_a_client_asks_about_is_answered(client: Ask) -> None:
    async with served() as address, client(address) as ask:
        assert await ask("is_server_live")
        assert await ask("is_server_ready")
        assert await ask("is_model_ready", "tiny")
        assert await ask("is_model_ready", "tiny", "1")
        assert not await ask("is_model_ready", "nobody")
        assert (await ask("get_server_metadata"))["name"] == "rescade"
        assert (await ask("get_model_metadata", "tiny"))["inputs"][0]["shape"] == [-1, 3, 8, 8]
        assert (await ask("get_model_config", "tiny"))["max_batch_size"] == 256
        assert len((await ask("get_inference_statistics"))["model_stats"]) == 4
        (counts,) = (await ask("get_inference_statistics", "tiny"))["model_stats"]
    assert counts["inference_count"] == 0


@CLIENTS
async def test_encoded_images_are_classified(client: Ask) -> None:
    photos = [encoded(random_photo(seed)) for seed in range(2)]
    array = np.array(photos, object)
    best = [http.InferRequestedOutput("probabilities", class_count=2)]
    async with served() as address, client(address) as ask:
        result = await ask("infer", "tiny", [image(array, "BYTES")], outputs=best)
        labels = (await ask("infer", "tiny", [image(array, "BYTES")])).as_numpy("label")
    named = result.as_numpy("probabilities")
    assert named.shape == (2, 2)
    assert [row[0].decode().split(":")[2] for row in named] == [label.decode() for label in labels]


@CLIENTS
async def test_an_empty_batch_is_answered(client: Ask) -> None:
    async with served() as address, client(address) as ask:
        result = await ask("infer", "tiny", [image(random_inputs(1)[:0])])
    assert result.as_numpy("logits").shape == (0, 4)


@CLIENTS
async def test_parameters_and_limits_are_passed_on(client: Ask) -> None:
    inputs = random_inputs(3)
    async with served() as address, client(address) as ask:
        result = await ask("infer", "tiny", [image(inputs)], priority=1, timeout=5_000_000, parameters={"max_stage": 0})
    assert result.as_numpy("exit_stage").tolist() == [0, 0, 0]


REFUSED = [
    ("nobody", random_inputs(1), {}, "there is no model 'nobody'"),
    ("tiny", random_inputs(1, 4), {}, "input 'image' is FP32 [1, 3, 4, 4]"),
    ("tiny", random_inputs(5), {}, "the limit is 4"),
    ("tiny", random_inputs(1), {"parameters": {"treshold": 1}}, "parameter 'treshold'"),
    ("tiny", random_inputs(1), {"sequence_id": 7}, "sequences are not offered"),
    ("tiny", random_inputs(1), {"model_version": "9"}, "no version '9'"),
]


@CLIENTS
@pytest.mark.parametrize(("model", "inputs", "options", "text"), REFUSED, ids=[row[3] for row in REFUSED])
async def test_clients_show_our_text(client: Ask, model: str, inputs: Floats, options: Any, text: str) -> None:
    async with served(max_images=4) as address, client(address) as ask:
        with pytest.raises(InferenceServerException) as caught:
            await ask("infer", model, [image(inputs)], **options)
    assert text in caught.value.message()


@CLIENTS
async def test_the_repository_is_not_for_everybody(client: Ask) -> None:
    async with served() as address, client(address) as ask:
        with pytest.raises(InferenceServerException, match="there is nothing at"):
            await ask("load_model", "tiny")
