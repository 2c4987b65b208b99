"""From what a user has at hand to a body, read back by the server's own code where it is a form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import AskedWrongly
from bench.question import Images, Options, Question, question, target
from server.multipart import read_parts

DOT = np.zeros((3, 2, 2), np.float32)


def test_one_image_travels_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cat.PNG"
    path.write_bytes(b"\x89PNG")
    named: list[Images] = [path, str(path), [path]]
    assert [question(image) for image in named] == [Question(b"\x89PNG", "image/png", 1)] * 3
    unnamed: list[Images] = [b"\xff\xd8", bytearray(b"\xff\xd8"), memoryview(b"\xff\xd8")]
    assert [question(image) for image in unnamed] == [Question(b"\xff\xd8", "application/octet-stream", 1)] * 3


def test_several_images_travel_as_a_form(tmp_path: Path) -> None:
    path = tmp_path / "dog.jpg"
    path.write_bytes(b"\r\n--\r\n")
    asked = question([b"cat", path, memoryview(b"")])
    parts = read_parts(asked.content_type, asked.body, 3)
    assert [part.data for part in parts] == [b"cat", b"\r\n--\r\n", b""]
    assert [part.headers["content-type"] for part in parts][1:] == ["image/jpeg", "application/octet-stream"]
    assert all(part.is_file for part in parts)
    assert asked.count == 3


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (DOT, (1, 3, 2, 2)),
        (np.zeros((4, 3, 2, 2), np.float64), (4, 3, 2, 2)),
        ([DOT, DOT.astype(np.float16)], (2, 3, 2, 2)),
        (list(np.zeros((5, 3, 2, 2), np.float32)), (5, 3, 2, 2)),
    ],
)
def test_ready_inputs_travel_as_json(inputs: Images, shape: tuple[int, ...]) -> None:
    asked = question(inputs)
    assert (asked.content_type, asked.count) == ("application/json", shape[0])
    assert np.shape(json.loads(asked.body)["inputs"]) == shape


def test_ready_inputs_come_back_bit_for_bit() -> None:
    inputs = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    received = np.asarray(json.loads(question(inputs).body)["inputs"]).astype(np.float32)
    assert received.tobytes() == inputs.tobytes()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no image"),
        (Path("nowhere.png"), "cannot read the image 'nowhere.png'"),
        ("\0", "cannot read"),
        (Path(), "cannot read"),
        ([b"cat", DOT], "do not mix"),
        ([b"cat", 7], "bytes, paths or float arrays"),
        ([DOT, np.zeros((3, 4, 4), np.float32)], "of one shape"),
        (np.zeros((3, 2, 2), np.uint8), "not uint8 of shape"),
        (np.zeros((2, 2, 3), np.float32), r"\(3, H, W\)"),
        (np.zeros((0, 3, 2, 2), np.float32), r"\(N, 3, H, W\)"),
        (np.zeros((2, 2), np.float32), "send an image as the bytes of its file"),
        (np.full((3, 2, 2), np.nan), "finite"),
        (np.full((3, 2, 2), 1e300), "finite as 32-bit"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent(images: Any, words: str) -> None:
    with pytest.raises(AskedWrongly, match=words):
        question(images)


def test_options_become_a_query() -> None:
    everything: Options = {"threshold": 0.5, "max_stage": 1, "top_k": 3, "logits": True, "allow_truncated": True}
    assert target(everything) == "/predict?threshold=0.5&max_stage=1&top_k=3&logits=true&allow_truncated=true"
    assert target({"deadline_ms": 5, "request_id": "a", "timeout_s": 1, "logits": False}) == "/predict"


@pytest.mark.parametrize("options", [{"treshold": 1}, {"deadline_ms": 0}, {"deadline_ms": float("nan")}])
def test_an_option_that_makes_no_sense_is_refused(options: Any) -> None:
    with pytest.raises(AskedWrongly, match=next(iter(options))):
        target(options)
