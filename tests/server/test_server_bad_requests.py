"""Everything a stranger may send, each with the status and the code it gets: never a 500, never a hang."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cascade.errors import DeadlineExceeded
from server.codec import Caps, Question, decode
from server.costs import Costs
from server.options import Options
from server.runtime import OnnxRuntime
from server.schemas import Failure
from tests.builders import FakeRuntime, encoded, random_photo, tiny_bundle
from tests.server.harness import serving

RUNTIME = OnnxRuntime(tiny_bundle())
PHOTO = encoded(random_photo())
TEXT = base64.b64encode(PHOTO).decode()
ZEROS = np.zeros((1, 3, 8, 8)).tolist()
FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'

Case = tuple[str, bytes | str | dict[str, Any], str, int, str]


def inputs(*shape: int, value: float = 0.0) -> dict[str, Any]:
    return {"inputs": np.full(shape, value).tolist()}


def with_first(value: Any) -> dict[str, Any]:
    found = np.zeros((1, 3, 8, 8)).tolist()
    found[0][0][0][0] = value
    return {"inputs": found}


# name: (content type, body, query, status, code)
CASES: dict[str, Case] = {
    "nothing": ("image/png", b"", "", 400, "bad_request"),
    "no JSON at all": ("application/json", b"", "", 400, "bad_request"),
    "no form at all": (FORM, b"", "", 400, "bad_request"),
    "no content type": ("", PHOTO, "", 415, "unsupported_type"),
    "a curl default": ("application/x-www-form-urlencoded", PHOTO, "", 415, "unsupported_type"),
    "text": ("text/plain", b"hello", "", 415, "unsupported_type"),
    "not an image": ("image/png", b"hello", "", 422, "bad_image"),
    "half an image": ("image/png", PHOTO[: len(PHOTO) // 2], "", 422, "bad_image"),
    "a program's file": ("application/octet-stream", b"%!PS-Adobe-3.0 EPSF-3.0\n", "", 422, "bad_image"),
    "too many bytes": ("image/png", b"\0" * 20_001, "", 413, "too_large"),
    "too many pixels": ("image/png", encoded(random_photo(width=200, height=100)), "", 413, "too_large"),
    "unknown option": ("image/png", PHOTO, "treshold=1", 400, "bad_request"),
    "option given twice": ("image/png", PHOTO, "top_k=1&top_k=2", 400, "bad_request"),
    "threshold of no number": ("image/png", PHOTO, "threshold=nan", 400, "bad_request"),
    "negative stage": ("image/png", PHOTO, "max_stage=-1", 400, "bad_request"),
    "broken JSON": ("application/json", b'{"inputs": [', "", 400, "bad_request"),
    "bytes that are no text": ("application/json", b"\xff\xfe\xfd", "", 400, "bad_request"),
    "deep JSON": ("application/json", b"[" * 9_999, "", 400, "bad_request"),
    "deep inputs": ("application/json", b'{"inputs":' + b"[" * 90 + b"]" * 90 + b"}", "", 400, "bad_shape"),
    "a JSON list": ("application/json", b"[1]", "", 400, "bad_request"),
    "empty JSON": ("application/json", {}, "", 400, "bad_request"),
    "both": ("application/json", {"images": [TEXT], "inputs": ZEROS}, "", 400, "bad_request"),
    "unknown field": ("application/json", {"inputs": ZEROS, "x": 1}, "", 400, "bad_request"),
    "field given twice": ("application/json", b'{"images": [], "images": []}', "", 400, "bad_request"),
    "option in both places": ("application/json", {"inputs": ZEROS, "top_k": 1}, "top_k=1", 400, "bad_request"),
    "images of no list": ("application/json", {"images": TEXT}, "", 400, "bad_request"),
    "no images": ("application/json", {"images": []}, "", 400, "bad_request"),
    "images of numbers": ("application/json", {"images": [1]}, "", 400, "bad_request"),
    "bad base64": ("application/json", {"images": ["@@@@"]}, "", 400, "bad_request"),
    "base64 of no ASCII": ("application/json", {"images": ["é"]}, "", 400, "bad_request"),
    "base64 of nothing": ("application/json", {"images": [""]}, "", 422, "bad_image"),
    "base64 of no image": ("application/json", {"images": ["aGVsbG8="]}, "", 422, "bad_image"),
    "too many images": ("application/json", {"images": [TEXT] * 5}, "", 413, "too_large"),
    "too many inputs": ("application/json", inputs(5, 3, 8, 8), "", 413, "too_large"),
    "wrong size": ("application/json", inputs(1, 3, 8, 9), "", 400, "bad_shape"),
    "channels last": ("application/json", inputs(8, 8, 3), "", 400, "bad_shape"),
    "flat": ("application/json", inputs(192), "", 400, "bad_shape"),
    "no rows": ("application/json", inputs(0, 3, 8, 8), "", 400, "bad_shape"),
    "no inputs": ("application/json", {"inputs": []}, "", 400, "bad_shape"),
    "a number": ("application/json", {"inputs": 1}, "", 400, "bad_shape"),
    "null": ("application/json", {"inputs": None}, "", 400, "bad_shape"),
    "an object": ("application/json", {"inputs": {"a": 1}}, "", 400, "bad_shape"),
    "ragged": ("application/json", {"inputs": [[1, 2], [3]]}, "", 400, "bad_shape"),
    "NaN": ("application/json", with_first(float("nan")), "", 400, "bad_request"),
    "infinity": ("application/json", with_first(float("inf")), "", 400, "bad_request"),
    "infinite by its digits": ("application/json", b'{"inputs": [[[1e999]]]}', "", 400, "bad_shape"),
    "beyond float32": ("application/json", with_first(1e300), "", 400, "bad_shape"),
    "beyond any float": ("application/json", with_first(10**400), "", 400, "bad_shape"),
    "text among numbers": ("application/json", with_first("1"), "", 400, "bad_shape"),
    "null among numbers": ("application/json", with_first(None), "", 400, "bad_shape"),
    "truth values": ("application/json", {"inputs": np.ones((3, 8, 8), bool).tolist()}, "", 400, "bad_shape"),
    "a form without a boundary": ("multipart/form-data", b"--x--", "", 400, "bad_request"),
    "a form with an endless boundary": (f"{FORM}{'x' * 300}", b"--x--", "", 400, "bad_request"),
    "a form of junk": (FORM, b"junk", "", 400, "bad_request"),
    "a form cut short": (FORM, PART + PHOTO, "", 400, "bad_request"),
    "a form without images": (
        FORM,
        b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n1\r\n--x--\r\n',
        "",
        400,
        "bad_request",
    ),
    "a form with an unknown field": (
        FORM,
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
        "",
        400,
        "bad_request",
    ),
    "a form with nameless parts": (FORM, b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n", "", 400, "bad_request"),
    "a form with an empty file": (FORM, PART + b"\r\n--x--\r\n", "", 422, "bad_image"),
    "a form with a bad file": (FORM, PART + b"hello\r\n--x--\r\n", "", 422, "bad_image"),
    "a form of many files": (FORM, (PART + b"hello\r\n") * 5 + b"--x--\r\n", "", 413, "too_large"),
    "a form of countless parts": (FORM, (PART + b"\r\n") * 99 + b"--x--\r\n", "", 413, "too_large"),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_bad_request_is_told_what_is_wrong(name: str) -> None:
    kind, body, query, status, code = CASES[name]
    content = json.dumps(body) if isinstance(body, dict) else body
    headers = {"Content-Type": kind} if kind else {}
    async with serving(RUNTIME, max_body_bytes=20_000, max_pixels=10_000, max_images=4) as client:
        response = await client.post(f"/predict?{query}", content=content, headers=headers)
    failure = Failure.model_validate_json(response.content).error
    assert (response.status_code, failure.code) == (status, code), failure
    assert failure.request_id == response.headers["X-Request-Id"]
    assert len(failure.message) > 15


async def test_a_wrong_shape_is_told_the_right_one() -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", json=inputs(2, 3, 9, 9))
    message = response.json()["error"]["message"]
    assert "(2, 3, 9, 9)" in message
    assert "(3, 8, 8) or (N, 3, 8, 8)" in message


async def test_the_image_at_fault_is_named() -> None:
    sent = [("image", ("a", PHOTO)), ("image", ("b", b"junk"))]
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", files=sent)
    assert "image 1 " in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"\0", PHOTO[:40], b'{"images":[', b"--x\r\n"])
@pytest.mark.parametrize("kind", ["image/png", "application/json", FORM])
async def test_scraps_of_any_kind_are_refused_in_the_one_shape(kind: str, body: bytes) -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", content=body, headers={"Content-Type": kind})
    assert 400 <= response.status_code < 500
    Failure.model_validate_json(response.content)


async def test_compressed_bodies_are_refused() -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", content=PHOTO, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_type")


async def pieces(count: int, taken: list[int]) -> AsyncIterator[bytes]:
    for number in range(count):
        taken.append(number)
        yield b"\0" * 1000


async def test_a_body_of_unknown_length_is_counted_as_it_comes_and_not_read_to_its_end() -> None:
    taken: list[int] = []
    async with serving(RUNTIME, max_body_bytes=5_000) as client:
        response = await client.post("/predict", content=pieces(1000, taken), headers={"Content-Type": "image/png"})
    assert response.status_code == 413
    assert len(taken) < 10


@pytest.mark.parametrize("length", ["5001", "9" * 40])
async def test_a_body_that_announces_too_much_is_not_read_at_all(length: str) -> None:
    taken: list[int] = []
    headers = {"Content-Type": "image/png", "Content-Length": length}
    async with serving(RUNTIME, max_body_bytes=5_000) as client:
        response = await client.post("/predict", content=pieces(9, taken), headers=headers)
    assert response.status_code == 413
    assert taken == []


async def test_bodies_together_are_bounded_too() -> None:
    arrived, held = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"\0" * 900
        arrived.set()
        await held.wait()

    headers = {"Content-Type": "image/png"}
    async with serving(RUNTIME, max_body_bytes=1000, max_buffered_bytes=1000) as client:
        first = asyncio.create_task(client.post("/predict", content=slow(), headers=headers))
        await arrived.wait()
        second = await client.post("/predict", content=b"\0" * 200, headers=headers)
        held.set()
        await first
        third = await client.post("/predict", content=PHOTO[:200], headers=headers)
    assert (second.status_code, second.json()["error"]["code"]) == (503, "overloaded")
    assert third.status_code == 422


async def test_a_full_server_says_when_to_try_again() -> None:
    arrived, held = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield PHOTO
        arrived.set()
        await held.wait()

    headers = {"Content-Type": "image/png"}
    async with serving(RUNTIME, max_in_flight=1) as client:
        first = asyncio.create_task(client.post("/predict", content=slow(), headers=headers))
        await arrived.wait()
        second = await client.post("/predict", content=PHOTO, headers=headers)
        held.set()
        assert (await first).status_code == 200
    assert (second.status_code, second.headers["Retry-After"]) == (503, "1")


async def test_a_body_that_never_comes_is_given_up() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"\0"
        await asyncio.Event().wait()

    async with serving(RUNTIME, request_timeout_s=0.02) as client:
        response = await client.post("/predict", content=never(), headers={"Content-Type": "image/png"})
    assert (response.status_code, response.json()["error"]["code"]) == (408, "slow_request")


async def test_an_answer_that_would_come_too_late_is_a_504() -> None:
    held = threading.Event()
    runtime = FakeRuntime(np.ones((1, 1, 2)), lambda _: held.wait(10))
    async with serving(runtime, request_timeout_s=0.05) as client:
        response = await client.post("/predict", json={"inputs": runtime.images([0]).tolist()})
        held.set()
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/bundle/../../etc/passwd", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("BREW", "/predict", 405, "method_not_allowed"),
        ("DELETE", "/bundle", 405, "method_not_allowed"),
    ],
)
async def test_strange_paths_and_methods_are_refused_in_the_one_shape(
    method: str, path: str, status: int, code: str
) -> None:
    async with serving(RUNTIME) as client:
        response: httpx.Response = await client.request(method, path)
    failure = Failure.model_validate_json(response.content).error
    assert (response.status_code, failure.code) == (status, code)
    assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("patience", [1e-9, 0.05])
async def test_images_that_take_too_long_to_decode_are_a_504(patience: float, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setitem(Image.OPEN, "PPM", (lambda *_: held.wait(10), lambda _: True))
    async with serving(RUNTIME, request_timeout_s=patience) as client:
        response = await client.post("/predict", content=b"P6", headers={"Content-Type": "image/x-portable-pixmap"})
        held.set()
    assert response.status_code in (408, 504)


def test_no_image_is_decoded_for_an_answer_that_nobody_waits_for() -> None:
    rule, caps = RUNTIME.manifest.preprocess, Caps(9, 10_000)
    late = iter([False, True])
    with pytest.raises(DeadlineExceeded):
        decode(Question(Options(), [PHOTO, PHOTO]), rule, caps, lambda: next(late))


@pytest.mark.parametrize("deadline", ["soon", "", "0", "-5", "nan", "inf"])
async def test_a_deadline_that_makes_no_sense_is_refused(deadline: str) -> None:
    async with serving(RUNTIME) as client:
        response = await client.post("/predict", content=b"x", headers={"X-Deadline-Ms": deadline})
    failure = Failure.model_validate_json(response.content).error
    assert (response.status_code, failure.code) == (400, "bad_request")
    assert "X-Deadline-Ms" in failure.message


async def test_a_deadline_that_stage_0_would_miss_is_a_504_at_once() -> None:
    runtime = FakeRuntime(np.ones((1, 1, 2)), costs=Costs((1,), ((0.5,),)))
    async with serving(runtime) as client:
        body = {"inputs": runtime.images([0]).tolist()}
        response = await client.post("/predict", json=body, headers={"X-Deadline-Ms": "100"})
    assert (response.status_code, runtime.batches) == (504, [])


async def test_an_answer_cut_short_says_so_where_that_is_allowed() -> None:
    table = np.array([[[0.1, 0.0]], [[9.0, 0.0]]])
    runtime = FakeRuntime(table, lambda _: time.sleep(0.2), costs=Costs((1,), ((0.1,), (60.0,))))
    async with serving(runtime) as client:
        body = {"inputs": runtime.images([0]).tolist()}
        late = await client.post("/predict", json=body)
        short = await client.post("/predict?allow_truncated=true", json=body)
    assert late.status_code == 504
    (prediction,) = short.json()["predictions"]
    assert (prediction["stage"], prediction["truncated"]) == (0, True)
