"""What bytes mean: an answer, or the error a server meant; and requests as bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from bench.address import parse
from bench.answers import Score, read_answer, refusal
from bench.connection import Response
from bench.errors import AskedWrongly, BadAnswer, Refused
from bench.request import encode, header, predict_target
from tests.bench.fake_server import prediction


def response(document: Any, status: int = 200, **headers: str) -> Response:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, 5.0)


def answer_with(**fields: Any) -> dict[str, Any]:
    document = prediction()
    document["predictions"][0].update(fields)
    return document


def test_everything_a_prediction_may_hold_is_typed() -> None:
    top = [{"label": "cat", "class": 0, "score": 0.9}, {"label": "dog", "class": 1, "score": None}]
    document = answer_with(top=top, logits=[1.5, None], truncated=True, later="a key of a later server")
    answer = read_answer(response(document, x_request_id="r-1"))
    assert answer.best.top == (Score(label="cat", index=0, score=0.9), Score(label="dog", index=1, score=None))
    assert (answer.best.logits, answer.best.truncated) == ((1.5, None), True)
    assert (answer.request_id, answer.received_at) == ("r-1", 5.0)


def test_a_server_that_knows_no_truncation_truncates_nothing() -> None:
    best = read_answer(response(prediction())).best
    assert (best.truncated, best.logits, best.top) == (False, None, ())


def test_an_answer_stays_as_it_is() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read_answer(response(prediction())).best.label = "dog"  # type: ignore[misc]


def test_a_refusal_has_all_the_server_said() -> None:
    error = {"code": "overloaded", "message": "try later", "request_id": "r-1"}
    found = refusal(response({"error": error}, 503, retry_after="2"))
    assert (found.status, found.code, found.message) == (503, "overloaded", "try later")
    assert (found.request_id, found.retry_after_s, found.kind) == ("r-1", 2.0, "503 overloaded")


def test_a_refusal_by_date_is_counted_from_the_servers_own_clock() -> None:
    dates = {"date": "Tue, 20 Oct 2026 12:00:00 GMT", "retry_after": "Tue, 20 Oct 2026 12:00:09 GMT"}
    assert refusal(response({"error": {}}, 429, **dates)).retry_after_s == 9.0


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b'{"error": "text"}', b"[]", b"\xff"])
def test_a_refusal_of_a_foreign_server_is_told_by_what_is_known(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_answer(response(body, 502, content_type="text/html", x_request_id="r-1"))
    assert str(caught.value) == f"HTTP 502: the server gave no reason known to rescade (text/html, {len(body)} bytes)"
    assert (caught.value.code, caught.value.request_id, caught.value.retry_after_s) == ("", "r-1", None)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"\xff\xfe", b"{}"])
def test_a_success_of_a_foreign_server_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer, match="POST /predict did not answer as agreed"):
        read_answer(response(body))


def test_an_option_left_out_is_left_to_the_server() -> None:
    asked = {"threshold": 0.0, "max_stage": 0, "top_k": None, "logits": False, "allow_truncated": True}
    assert predict_target(asked) == "/predict?threshold=0.0&max_stage=0&allow_truncated=true"
    assert predict_target({}) == "/predict"


def test_a_request_without_a_body_says_so() -> None:
    head = b"GET /a/bundle HTTP/1.1\r\nHost: here:1\r\nAccept: application/json\r\nX-A: b\r\nContent-Length: 0\r\n\r\n"
    assert encode(parse("http://here:1/a"), "GET", "/bundle", headers=header("X-A", "b")) == head


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "é", "", "\x00"])
def test_a_header_cannot_hold_what_would_end_it(value: str) -> None:
    with pytest.raises(AskedWrongly, match="X-Api-Key"):
        header("X-Api-Key", value)
