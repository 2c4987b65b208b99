"""Every method over made-up answers, and every way to be refused: with a code, our text, and no traceback."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `grpc`")
pytest.importorskip("google.protobuf", reason="needs the extra `grpc`")

import grpc
from starlette.datastructures import Headers

from cascade.errors import (
    BadImage,
    CascadeError,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    SlowRequest,
    StageFailed,
    TooLarge,
)
from server.logs import request_id
from server.oip.documents import EXTENSIONS
from server.rpc.errors import Code, code_of
from server.rpc.messages import INFERENCE, REQUESTS
from tests.server.grpc.harness import FakeMeter, listening
from tests.server.grpc.makers import infer, raw
from tests.server.oip.fakes import Denied, FakeModel, FakeModels

ZEROS = np.zeros((2, 3, 8, 8), np.float32)
BY_NAME = ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"]
CONTROL = ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"]
CODES = [
    (400, Code.INVALID_ARGUMENT),
    (401, Code.UNAUTHENTICATED),
    (403, Code.PERMISSION_DENIED),
    (404, Code.NOT_FOUND),
    (408, Code.DEADLINE_EXCEEDED),
    (409, Code.FAILED_PRECONDITION),
    (413, Code.INVALID_ARGUMENT),
    (422, Code.INVALID_ARGUMENT),
    (429, Code.RESOURCE_EXHAUSTED),
    (500, Code.INTERNAL),
    (501, Code.UNIMPLEMENTED),
    (503, Code.UNAVAILABLE),
    (504, Code.DEADLINE_EXCEEDED),
]
FAILURES = [
    (BadImage("no image"), Code.INVALID_ARGUMENT),
    (TooLarge("too many"), Code.INVALID_ARGUMENT),
    (SlowRequest("too slow"), Code.DEADLINE_EXCEEDED),
    (NotReady("warming up"), Code.UNAVAILABLE),
    (Overloaded("full", 1.5), Code.UNAVAILABLE),
    (DeadlineExceeded("too late"), Code.DEADLINE_EXCEEDED),
    (StageFailed("broken"), Code.INTERNAL),
    (Denied("who are you?"), Code.UNAUTHENTICATED),
]


def trailing(error: grpc.aio.AioRpcError) -> Any:
    """What is said after a refusal, by name."""
    return error.trailing_metadata()


async def test_health_is_said() -> None:
    async with listening(FakeModels()) as client:
        assert (await client.ask("ServerLive")).live
        assert (await client.ask("ServerReady")).ready
        assert (await client.ask("ModelReady", name="cascade", version="1")).ready


async def test_what_is_not_ready_says_so() -> None:
    async with listening(FakeModels([FakeModel(ready=False)], ready=False)) as client:
        assert (await client.ask("ServerLive")).live
        assert not (await client.ask("ServerReady")).ready
        assert not (await client.ask("ModelReady", name="cascade")).ready


async def test_the_server_says_what_it_is() -> None:
    async with listening(FakeModels()) as client:
        found = await client.ask("ServerMetadata")
    assert (found.name, found.version, tuple(found.extensions)) == ("rescade", "0.1.0", EXTENSIONS)


async def test_a_model_says_what_it_takes_and_gives() -> None:
    async with listening(FakeModels()) as client:
        found = await client.ask("ModelMetadata", name="cascade", version="1")
    assert (found.name, list(found.versions), found.platform) == ("cascade", ["2", "1"], "onnx_onnxv1")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs] == [
        ("image", "FP32", [-1, 3, 8, 8])
    ]
    assert [tensor.name for tensor in found.outputs] == ["logits", "probabilities", "label", "exit_stage", "energy"]
    assert "BYTES" in found.properties["image"]


async def test_a_configuration_has_what_load_generators_read() -> None:
    async with listening(FakeModels()) as client:
        config = (await client.ask("ModelConfig", name="cascade")).config
    assert (config.name, config.max_batch_size) == ("cascade", 4)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [(tensor.data_type, list(tensor.dims)) for tensor in config.input] == [(11, [3, 8, 8])]
    assert [(tensor.name, tensor.data_type) for tensor in config.output][2] == ("label", 13)


@pytest.mark.parametrize(("version", "given"), [("", "2"), ("1", "1")])
async def test_statistics_of_a_model_are_of_one_version(version: str, given: str) -> None:
    async with listening(FakeModels()) as client:
        (found,) = (await client.ask("ModelStatistics", name="cascade", version=version)).model_stats
    assert (found.version, found.inference_count, found.execution_count, found.last_inference) == (given, 8, 3, 1)
    assert (found.inference_stats.success.count, found.inference_stats.success.ns) == (2, 500)


async def test_statistics_of_all_models_have_their_stages() -> None:
    async with listening(FakeModels([FakeModel()])) as client:
        found = (await client.ask("ModelStatistics")).model_stats
    assert [entry.name for entry in found] == ["cascade", "cascade/stage0", "cascade/stage1"]


async def test_inference_answers_every_image() -> None:
    meter = FakeMeter()
    async with listening(FakeModels(), meter) as client:
        found = await client.ask("ModelInfer", infer(ZEROS, id="r1"))
    assert (found.model_name, found.model_version, found.id) == ("cascade", "2", "r1")
    assert np.frombuffer(raw(found, "logits"), np.float32).tolist() == [0, 1, 2, 3] * 2
    assert np.frombuffer(raw(found, "exit_stage"), np.int32).tolist() == [0, 1]
    assert (meter.in_hand, meter.told) == (0, [("ModelInfer", 200)])


async def test_classification_names_the_best() -> None:
    message = infer(ZEROS[:1])
    message.outputs.add(name="logits").parameters["classification"].int64_param = 2
    async with listening(FakeModels()) as client:
        found = await client.ask("ModelInfer", message)
    assert (found.outputs[0].datatype, list(found.outputs[0].shape)) == ("BYTES", [1, 2])
    assert b"3.0:3:class 3" in raw(found, "logits")


async def test_an_empty_batch_has_an_empty_answer() -> None:
    models = FakeModels()
    async with listening(models) as client:
        found = await client.ask("ModelInfer", infer(ZEROS[:0]))
    assert models.questions == []
    assert [list(output.shape) for output in found.outputs] == [[0, 4], [0, 4], [0], [0], [0]]


async def test_the_sooner_of_deadline_and_timeout_counts() -> None:
    models, message = FakeModels(), infer(ZEROS)
    async with listening(models) as client:
        await client.start("ModelInfer", message)
        await client.start("ModelInfer", message, timeout=100)
        message.parameters["timeout"].int64_param = 5_000_000
        await client.start("ModelInfer", message, timeout=100)
    none, left, timeout = (deadline for _, deadline in models.questions)
    assert none is None
    assert left is not None
    assert 5 < left < 102  # gRPC sends large ones in whole seconds
    assert timeout == 5


async def test_the_repository_can_be_seen_and_changed() -> None:
    models = FakeModels()
    async with listening(models) as client:
        rows = (await client.ask("RepositoryIndex")).models
        ready = (await client.ask("RepositoryIndex", ready=True)).models
        await client.ask("RepositoryModelLoad", model_name="cascade")
        message = REQUESTS["RepositoryModelUnload"](model_name="cascade")
        message.parameters["unload_dependents"].bool_param = True
        await client.ask("RepositoryModelUnload", message)
    assert [(row.name, row.state, row.reason) for row in rows] == [
        ("cascade", "READY", ""),
        ("other", "UNAVAILABLE", "unloaded"),
    ]
    assert [row.name for row in ready] == ["cascade"]
    assert models.calls == ["load cascade", "unload cascade"]


async def test_nothing_is_uploaded() -> None:
    message = REQUESTS["RepositoryModelLoad"](model_name="cascade")
    message.parameters["file:model.onnx"].bytes_param = b"weights"
    async with listening(FakeModels()) as client:
        error = await client.refusal("RepositoryModelLoad", message)
    assert error.code() is Code.INVALID_ARGUMENT
    assert "file:model.onnx" in str(error.details())


@pytest.mark.parametrize("method", CONTROL)
async def test_the_repository_may_be_locked(method: str) -> None:
    models = FakeModels(locked=Denied("who are you?"))
    async with listening(models) as client:
        error = await client.refusal(method)
    assert (error.code(), error.details(), models.calls) == (Code.UNAUTHENTICATED, "who are you?", [])


@pytest.mark.parametrize("method", BY_NAME)
async def test_a_model_or_version_that_is_not_there_is_not_found(method: str) -> None:
    async with listening(FakeModels()) as client:
        for name, version in (("nobody", ""), ("cascade", "3")):
            error = await client.refusal(method, REQUESTS[method](name=name, version=version))
            assert error.code() is Code.NOT_FOUND
            assert trailing(error)["x-error-code"] == "unknown_model"
        assert (await client.refusal("ModelInfer", infer(ZEROS, model="nobody"))).code() is Code.NOT_FOUND


@pytest.mark.parametrize("method", ["ModelStreamInfer", "TraceSetting", "SystemSharedMemoryStatus"])
async def test_what_is_not_offered_is_unimplemented(method: str) -> None:
    async with listening(FakeModels()) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.raw(method)(b"")
    assert caught.value.code() is Code.UNIMPLEMENTED


@pytest.mark.parametrize(("failure", "code"), FAILURES, ids=[error.code for error, _ in FAILURES])
async def test_every_failure_has_its_code_and_our_text(failure: CascadeError, code: Code) -> None:
    meter = FakeMeter()
    async with listening(FakeModels(failure=failure), meter) as client:
        error = await client.refusal("ModelInfer", infer(ZEROS))
    assert (error.code(), error.details()) == (code, str(failure))
    assert trailing(error)["x-error-code"] == failure.code
    assert meter.told == [("ModelInfer", failure.status)]


@pytest.mark.parametrize(("status", "code"), CODES)
def test_every_status_has_a_code(status: int, code: Code) -> None:
    assert code_of(status) is code


async def test_a_full_server_says_when_to_come_back() -> None:
    async with listening(FakeModels(failure=Overloaded("full", 1.5))) as client:
        error = await client.refusal("ModelInfer", infer(ZEROS))
    assert trailing(error)["grpc-retry-pushback-ms"] == "1500"


async def test_an_unforeseen_error_is_told_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(FakeModels(failure=ZeroDivisionError("secret"))) as client:
        error = await client.refusal("ModelInfer", infer(ZEROS))
    assert error.code() is Code.INTERNAL
    assert "secret" not in str(error.details())
    assert any(record.exc_info for record in caplog.records)


async def test_bytes_that_are_no_message_are_refused() -> None:
    async with listening(FakeModels()) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.raw("ModelInfer")(b"\xff")
    assert caught.value.code() is Code.INVALID_ARGUMENT


async def test_a_call_without_a_message_is_one_with_an_empty_message() -> None:
    async with listening(FakeModels()) as client:
        call = client.channel.stream_unary(f"/{INFERENCE}/ModelReady")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(iter(()))
    assert caught.value.code() is Code.NOT_FOUND


async def test_a_call_keeps_the_id_it_came_with() -> None:
    async with listening(FakeModels()) as client:
        call = client.start("ServerLive", metadata=(("x-request-id", "mine-1"),))
        await call
        assert (await call.trailing_metadata())["x-request-id"] == "mine-1"
        error = await client.refusal("ModelReady", metadata=(("x-request-id", "mine-2"),))
        assert trailing(error)["x-request-id"] == "mine-2"


@pytest.mark.parametrize("given", [(), (("x-request-id", "not good!"),)])
async def test_a_call_without_a_good_id_gets_one(given: tuple[tuple[str, str], ...]) -> None:
    async with listening(FakeModels()) as client:
        ids = set()
        for _ in range(2):
            call = client.start("ServerLive", metadata=given)
            await call
            ids.add((await call.trailing_metadata())["x-request-id"])
    assert len(ids) == 2
    assert "not good!" not in ids
    assert request_id.get() is None


async def test_metadata_is_checked_before_all_but_probes() -> None:
    seen: list[str | None] = []

    def check(headers: Headers) -> None:
        seen.append(headers.get("X-Api-Key"))
        if headers.get("x-api-key") != "right":
            raise Denied("send a key")

    async with listening(FakeModels(), check=check) as client:
        assert (await client.ask("ServerLive")).live
        assert (await client.ask("ModelReady", name="cascade")).ready
        assert (await client.refusal("ModelInfer", infer(ZEROS))).code() is Code.UNAUTHENTICATED
        await client.start("ModelInfer", infer(ZEROS), metadata=(("x-api-key", "right"), ("x-bin", b"\xff")))
    assert seen == [None, "right"]


async def test_a_call_is_logged_at_debug_and_a_refusal_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "server.rpc")
    async with listening(FakeModels()) as client:
        await client.ask("ServerLive")
        await client.refusal("ModelReady")
    found = [(record.levelname, getattr(record, "fields", {})) for record in caplog.records if record.msg == "request"]
    assert [(level, fields["status"]) for level, fields in found] == [("DEBUG", 200), ("INFO", 404)]
    assert found[1][1]["error"] == "unknown_model"
    assert found[1][1]["path"] == f"/{INFERENCE}/ModelReady"


async def test_a_call_that_went_well_is_not_written_where_debug_is_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.rpc")
    async with listening(FakeModels()) as client:
        await client.ask("ServerLive")
    assert [record for record in caplog.records if record.msg == "request"] == []
