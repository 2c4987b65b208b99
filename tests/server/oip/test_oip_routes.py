"""Every path of the protocol, with and without a version, and one shape of refusal for all that goes wrong."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from cascade.errors import CascadeError, DeadlineExceeded, NotReady, Overloaded
from server.journal import Record
from server.logs import request_id
from server.oip.compression import compress
from server.oip.request import HEADER
from tests.builders import encoded, random_inputs, random_photo
from tests.server.oip.fakes import Denied, FakeModel, FakeModels, protocol
from tests.server.oip.makers import binary_entry, elements, image_entry, request_body, with_tail

INFER = "/v2/models/cascade/infer"
GETS = ["/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/stats"]
OF_A_MODEL = ["", "/ready", "/config", "/stats"]
PATHS = [*GETS, *(f"/v2/models/cascade{rest}" for rest in OF_A_MODEL)]
VERSIONED = [f"/v2/models/cascade/versions/1{rest}" for rest in OF_A_MODEL]
POSTS = [INFER, "/v2/models/cascade/versions/1/infer", "/v2/repository/index"]
CONTROL = ["/v2/repository/models/cascade/load", "/v2/repository/models/cascade/unload"]


def check_refusal(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """A refusal of the protocol's shape that says these words."""
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/json")
    body: dict[str, Any] = response.json()
    assert isinstance(body["error"], str)
    assert all(word in body["error"] for word in words)
    assert "Traceback" not in response.text
    return body


@pytest.mark.parametrize("path", [*PATHS, *VERSIONED])
async def test_what_is_got_is_json(path: str) -> None:
    async with protocol() as client:
        response = await client.get(path)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    assert response.json()


async def test_health_says_what_every_client_looks_for() -> None:
    async with protocol() as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True, "live": True}
        assert (await client.get("/v2/models/cascade/ready")).json() == {"name": "cascade", "ready": True}


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/cascade/ready"])
async def test_what_is_not_ready_says_so_and_when_to_ask_again(path: str) -> None:
    async with protocol(FakeModels([FakeModel(ready=False)], ready=False)) as client:
        response = await client.get(path)
    assert check_refusal(response, 503, "not ready")["ready"] is False
    assert response.headers["Retry-After"] == "1"


async def test_without_a_version_the_current_one_answers() -> None:
    async with protocol() as client:
        for path, version in ((INFER, "2"), ("/v2/models/cascade/versions/1/infer", "1")):
            found = (await client.post(path, content=request_body())).json()
            assert (found["model_name"], found["model_version"]) == ("cascade", version)
            stats = (await client.get(path.replace("infer", "stats"))).json()["model_stats"]
            assert [entry["version"] for entry in stats] == [version]
        assert (await client.get("/v2/models/cascade?version=9")).json()["versions"] == ["2", "1"]
        assert (await client.get("/v2/models")).json() == {"models": ["cascade"]}


async def test_stages_are_counted_where_all_models_are() -> None:
    async with protocol(FakeModels([FakeModel()])) as client:
        entries = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert [entry["name"] for entry in entries] == ["cascade", "cascade/stage0", "cascade/stage1"]


async def test_limits_are_those_of_the_configuration() -> None:
    async with protocol() as client:
        found = (await client.get("/v2/models/cascade/config")).json()
    assert (found["max_batch_size"], found["dynamic_batching"]["max_queue_delay_microseconds"]) == (4, 2000)


async def test_names_arrive_percent_encoded() -> None:
    async with protocol(FakeModels([FakeModel("a b", "v 1")])) as client:
        assert (await client.get("/v2/models/a%20b/versions/v%201/ready")).json()["name"] == "a b"


@pytest.mark.parametrize("model", ["nobody", "cascade/versions/3"])
@pytest.mark.parametrize("rest", OF_A_MODEL)
async def test_a_model_that_is_not_there_is_404(model: str, rest: str) -> None:
    async with protocol() as client:
        assert check_refusal(await client.get(f"/v2/models/{model}{rest}"), 404, "no model")["code"] == "unknown_model"
        check_refusal(await client.post(f"/v2/models/{model}/infer", content=request_body()), 404, "no model")


NOWHERE = [
    "/v2/nothing",
    "/v2/health",
    "/v2/models/",
    "/v2/models/cascade/",
    "/v2/models/cascade/generate",
    "/v2/models/cascade/versions",
    "/v2/systemsharedmemory/status",
    "/v2/trace/setting",
]


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
async def test_a_path_that_is_not_there_is_404(path: str, method: str) -> None:
    async with protocol() as client:
        check_refusal(await client.request(method, path), 404, path)


@pytest.mark.parametrize("path", [*PATHS, *VERSIONED])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
async def test_what_is_got_is_only_got(path: str, method: str) -> None:
    async with protocol() as client:
        response = await client.request(method, path)
    check_refusal(response, 405, method, path, "use GET")
    assert response.headers["Allow"] == "GET"


@pytest.mark.parametrize("path", [*POSTS, *CONTROL])
async def test_what_is_posted_is_only_posted(path: str) -> None:
    async with protocol() as client:
        response = await client.get(path)
    check_refusal(response, 405, "use POST")
    assert response.headers["Allow"] == "POST"


async def test_an_answer_echoes_its_id_and_says_its_threshold() -> None:
    async with protocol() as client:
        response = await client.post(INFER, content=request_body(id="r1", outputs=[{"name": "label"}]))
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {
        "model_name": "cascade",
        "model_version": "2",
        "id": "r1",
        "parameters": {"threshold": 0.6},
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["class 3"]}],
    }


# What clients ask for: parameters of the request, and its outputs.
ASKED: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "nothing": ({"binary_data_output": True}, []),
    "binary": ({}, [{"name": "logits", "parameters": {"binary_data": True}}]),
    "json": ({}, [{"name": "logits", "parameters": {"binary_data": False}}]),
}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("asked", ASKED)
async def test_all_six_ways_to_ask_give_the_same_logits(binary: bool, asked: str) -> None:
    images = random_inputs(2)
    parameters, outputs = ASKED[asked]
    entry = binary_entry(images.nbytes, images.shape) if binary else image_entry(images.tolist(), images.shape)
    head = request_body(entry, parameters=parameters, outputs=outputs)
    body, headers = with_tail(head, images.tobytes()) if binary else (head, {})
    models = FakeModels()
    async with protocol(models) as client:
        response = await client.post(INFER, content=body, headers=headers)
    assert logits_of(response) == [0.0, 1.0, 2.0, 3.0] * 2
    np.testing.assert_array_equal(models.questions[0][0].inputs, images)


def logits_of(response: httpx.Response) -> list[float]:
    length = int(response.headers.get(HEADER, len(response.content)))
    entry = json.loads(response.content[:length])["outputs"][0]
    assert entry["name"] == "logits"
    if "data" in entry:
        return list(entry["data"])
    size = entry["parameters"]["binary_data_size"]
    assert response.headers["Content-Type"] == "application/octet-stream"
    return list(np.frombuffer(response.content[length : length + size], "<f4").tolist())


@pytest.mark.parametrize("name", [HEADER, HEADER.lower(), HEADER.upper()])
@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/html"])
async def test_only_the_length_header_chooses_the_reader(name: str, content_type: str | None) -> None:
    photo = elements(encoded(random_photo()))
    body, headers = with_tail(request_body(binary_entry(len(photo), [1, 1], "BYTES")), photo)
    extra = {} if content_type is None else {"Content-Type": content_type}
    async with protocol() as client:
        response = await client.post(INFER, content=body, headers={name: headers[HEADER], **extra})
    assert response.status_code == 200


async def test_a_raw_request_is_answered_in_binary() -> None:
    images = random_inputs(1)
    models = FakeModels()
    async with protocol(models) as client:
        response = await client.post(INFER, content=images.tobytes(), headers={HEADER: "0"})
    assert logits_of(response) == [0.0, 1.0, 2.0, 3.0]
    np.testing.assert_array_equal(models.questions[0][0].inputs, images)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_request_is_read_as_the_plain_one(encoding: str) -> None:
    images = random_inputs(1)
    body, headers = with_tail(request_body(binary_entry(images.nbytes)), images.tobytes())
    small = compress(body, encoding)
    async with protocol() as client:
        response = await client.post(INFER, content=small, headers={**headers, "Content-Encoding": encoding})
    assert logits_of(response) == [0.0, 1.0, 2.0, 3.0]


async def test_an_empty_batch_has_an_empty_answer_and_asks_nobody() -> None:
    models = FakeModels()
    async with protocol(models) as client:
        response = await client.post(INFER, content=request_body(image_entry([], [0, 3, 8, 8])))
    assert [entry["data"] for entry in response.json()["outputs"]] == [[]] * 5
    assert "parameters" not in response.json()
    assert models.questions == []


async def test_a_timeout_is_passed_on_in_seconds() -> None:
    models = FakeModels()
    async with protocol(models) as client:
        await client.post(INFER, content=request_body(parameters={"timeout": 250_000}))
        await client.post(INFER, content=request_body())
    assert [deadline for _, deadline in models.questions] == [0.25, None]


async def test_an_image_in_base64_is_answered() -> None:
    photo = encoded(random_photo())
    models = FakeModels()
    body = request_body(image_entry([base64.b64encode(photo).decode()], [1], "BYTES"))
    async with protocol(models) as client:
        assert (await client.post(INFER, content=body)).status_code == 200
    assert models.questions[0][0].images == [photo]


REFUSED: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no JSON": (b"{", {}, 400, "JSON"),
    "another input": (request_body({**image_entry(), "name": "x"}), {}, 400, "'x'"),
    "another output": (request_body(outputs=[{"name": "x"}]), {}, 400, "'x'"),
    "too many images": (request_body(image_entry([], [5, 3, 8, 8])), {}, 413, "limit is 4"),
    "a bomb": (gzip.compress(b"\0" * 20_001), {"Content-Encoding": "gzip"}, 413, "once decompressed"),
    "another encoding": (request_body(), {"Content-Encoding": "br"}, 415, "gzip or deflate"),
    "a wrong header": (request_body(), {HEADER: "-1"}, 400, HEADER),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_at_fault_is_refused(case: str) -> None:
    body, headers, status, words = REFUSED[case]
    async with protocol() as client:
        response = await client.post(INFER, content=body, headers=headers)
    check_refusal(response, status, words)
    assert response.headers.get("Accept-Encoding") == ("gzip, deflate" if status == 415 else None)


FAILURES: dict[str, tuple[Exception, int, str | None]] = {
    "full": (Overloaded("too much in hand"), 503, "1"),
    "warming up": (NotReady("too much in hand"), 503, "1"),
    "late": (DeadlineExceeded("too much in hand"), 504, None),
    "any other": (CascadeError("too much in hand"), 500, None),
    "from the framework": (HTTPException(429, "too much in hand", {"Retry-After": "9"}), 429, "9"),
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("path", [INFER, *CONTROL])
async def test_a_server_that_cannot_says_why(case: str, path: str) -> None:
    failure, status, retry_after = FAILURES[case]
    async with protocol(FakeModels(failure=failure)) as client:
        response = await client.post(path, content=request_body() if path == INFER else b"")
    check_refusal(response, status, "too much in hand")
    assert response.headers.get("Retry-After") == retry_after


async def test_what_nobody_foresaw_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with protocol(FakeModels(failure=RuntimeError("secret"))) as client:
        response = await client.post(INFER, content=request_body())
    assert "secret" not in check_refusal(response, 500, "its log has the request id")["error"]
    assert "secret" in caplog.text


async def test_a_client_that_hung_up_is_left_to_the_server() -> None:
    app = FastAPI()
    app.add_exception_handler(ClientDisconnect, lambda _, __: Response(status_code=499))
    async with protocol(FakeModels(failure=ClientDisconnect()), app) as client:
        assert (await client.post(INFER, content=request_body())).status_code == 499


async def test_a_refusal_has_the_id_of_the_request_and_marks_its_line_of_the_log() -> None:
    app, record = FastAPI(), Record("abc")

    @app.middleware("http")
    async def observe(request: Any, call_next: Any) -> Any:
        request.scope["rescade"] = record
        request_id.set(record.id)
        return await call_next(request)

    async with protocol(app=app) as client:
        body = check_refusal(await client.post(INFER, content=b"{"), 400)
    assert (body["request_id"], body["code"], record.fields) == ("abc", "bad_request", {"error": "bad_request"})


async def test_the_repository_is_listed_loaded_and_unloaded() -> None:
    models = FakeModels()
    async with protocol(models) as client:
        assert [row["name"] for row in (await client.post("/v2/repository/index")).json()] == ["cascade", "other"]
        ready = await client.post("/v2/repository/index", content=b'{"ready": true}')
        assert ready.json() == [{"name": "cascade", "version": "2", "state": "READY", "reason": ""}]
        for path in CONTROL:
            response = await client.post(path)
            assert (response.status_code, response.content) == (200, b"")
    assert models.calls == ["load cascade", "unload cascade"]


@pytest.mark.parametrize("path", ["/v2/repository/index", *CONTROL])
async def test_the_repository_is_behind_a_door(path: str) -> None:
    async with protocol(FakeModels(locked=Denied("bring credentials"))) as client:
        assert check_refusal(await client.post(path, content=b"{"), 401, "bring credentials")["code"] == "denied"


@pytest.mark.parametrize("path", CONTROL)
async def test_a_bad_body_leaves_the_repository_alone(path: str) -> None:
    models = FakeModels()
    async with protocol(models) as client:
        check_refusal(await client.post(path, content=b'{"parameters": {"file:x": "AA=="}}'), 400, "file:x")
    assert models.calls == []


async def test_every_path_is_documented_with_its_parameters() -> None:
    async with protocol() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    named = {"/v2/models/{name}/versions/{version}/infer", "/v2/repository/models/{name}/load", "/v2/models/stats"}
    assert named <= set(paths)
    assert [entry["name"] for entry in paths["/v2/models/{name}/versions/{version}"]["get"]["parameters"]] == [
        "name",
        "version",
    ]
    assert not any("rest" in path for path in paths)
