"""The command from outside: what it prints, what it writes, how it ends."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.__main__ import bench_command
from tests.bench.fake_server import Request, cascade, folder_of_pets, image, refusal, serving_in_thread


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return folder_of_pets(tmp_path / "pets")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_in_thread(cascade) as url:
        yield url


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(bench_command, [str(argument) for argument in arguments])


def clean(result: Result) -> Result:
    """Whatever happened, no traceback reached the user."""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def test_by_default_every_image_is_sent_once_and_a_table_printed(server: str, pets: Path) -> None:
    result = clean(bench(server + "/predict", "--images", pets))
    assert result.exit_code == 0
    assert f"{server}, 4 images in 2 classes from {pets}" in result.stdout
    for words in ("8 at a time", "answered", "latency p99.9, ms", "left at stage 1, %", "75.00", "mean MACs an image"):
        assert words in result.stdout
    assert result.stderr == ""


def test_json_on_stdout_stands_alone(server: str, pets: Path) -> None:
    result = clean(bench(server, "--images", pets, "--json", "-", "--concurrency", "1,3", "--requests", "6"))
    document = json.loads(result.stdout)
    assert document["format_version"] == 1
    assert document["url"] == server
    assert document["images"]["classes"] == ["cat", "dog"]
    assert [(run["load"]["connections"], run["requests"]) for run in document["runs"]] == [(1, 6), (3, 6)]


def test_json_in_a_file_holds_what_the_table_shows(server: str, pets: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = clean(bench(server, "--images", pets, "--compare", "threshold=own,0.85", "--json", path))
    runs = json.loads(path.read_text())["runs"]
    assert [run["name"] for run in runs] == ["S0 alone", "adaptive", "adaptive 0.85", "full cascade"]
    assert [run["mean_macs"] for run in runs] == [100, 250, 325, 400]
    assert [run["versus_full"]["macs"] for run in runs] == [0.25, 0.625, 0.8125, 1.0]
    assert [run["asked_max_stage"] for run in runs] == [0, None, None, None]
    for run in runs:
        assert run["name"] in result.stdout
        assert f"{run['latency_ms']['p99']:.2f}" in result.stdout


def test_an_open_loop_reports_its_schedule(server: str, pets: Path) -> None:
    options = ["--rate", "400", "--duration", "0.05", "--arrivals", "constant", "--connections", "3", "--seed", "5"]
    result = clean(bench(server, "--images", pets, "--json", "-", *options))
    (run,) = json.loads(result.stdout)["runs"]
    assert run["load"] == {
        "mode": "open",
        "connections": 3,
        "requests": None,
        "duration_s": 0.05,
        "rate_per_s": 400.0,
        "arrivals": "constant",
        "seed": 5,
        "warmup": 20,
        "timeout_s": 30.0,
        "deadline_ms": None,
    }
    assert run["requests"] == 20
    assert run["wait_ms"]["p50"] >= 0


def test_options_of_the_cascade_reach_the_server(server: str, pets: Path) -> None:
    result = clean(bench(server, "--images", pets, "--json", "-", "--threshold", "0.85", "--max-stage", "0"))
    (run,) = json.loads(result.stdout)["runs"]
    assert (run["threshold"], run["asked_threshold"], run["asked_max_stage"]) == (0.85, 0.85, 0)
    assert [item["count"] for item in run["exits"]] == [4, 0]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the `plot` extra")
def test_a_plot_is_written(server: str, pets: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    assert clean(bench(server, "--images", pets, "--plot", path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = clean(bench("http://127.0.0.1:1", "--images", pets, "--plot", "a.png"))
    assert (result.exit_code, "rescade[plot]" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--requests", "1", "--duration", "1"], "not both"),
        (["--rate", "5", "--concurrency", "2"], "give one of them"),
        (["--arrivals", "poisson"], "add --rate"),
        (["--connections", "5"], "add --rate"),
        (["--rate", "1000000", "--duration", "1000"], "10000000 are the most"),
        (["--duration", "nan"], "finite"),
        (["--timeout", "inf"], "finite"),
        (["--deadline", "inf"], "finite"),
        (["--compare", "stage=1"], "--compare takes"),
        (["--compare", "threshold", "--threshold", "1"], "leave out --threshold"),
        (["--compare", "threshold", "--concurrency", "1,2"], "one --concurrency"),
        (["--concurrency", "1,x"], "--concurrency"),
        (["--concurrency", "0"], "--concurrency"),
        (["--requests", "0"], "--requests"),
        (["--json", "no/such/folder/a.json"], "no folder"),
        (["--plot", "a.gif"], "a.gif is none of them"),
    ],
)
def test_options_that_make_no_sense_end_with_2(pets: Path, options: list[str], words: str) -> None:
    result = clean(bench("http://127.0.0.1:1", "--images", pets, *options))
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_an_address_or_a_folder_that_makes_no_sense_ends_with_2(pets: Path, tmp_path: Path) -> None:
    assert clean(bench("localhost", "--images", pets)).exit_code == 2
    assert clean(bench("http://127.0.0.1:1", "--images", tmp_path / "gone")).exit_code == 2
    (tmp_path / "empty").mkdir()
    result = clean(bench("http://127.0.0.1:1", "--images", tmp_path / "empty"))
    assert (result.exit_code, "holds no images" in result.stderr) == (2, True)


def test_a_server_that_is_not_there_ends_with_1_and_one_line(pets: Path) -> None:
    with serving_in_thread(cascade) as url:
        pass
    result = clean(bench(url, "--images", pets))
    assert result.exit_code == 1
    assert result.stderr == f"Error: cannot connect to {url}: nobody listens there\n"


def test_a_server_that_refuses_everything_ends_with_1(pets: Path) -> None:
    async def handler(request: Request) -> bytes:
        return refusal(503, "not_ready", "warming up")

    with serving_in_thread(handler) as url:
        result = clean(bench(url, "--images", pets))
        assert result.exit_code == 1
        assert "every warm-up request failed" in result.stderr

        result = clean(bench(url, "--images", pets, "--warmup", "0"))
    assert result.exit_code == 1
    assert "failed: 503 not_ready" in result.stdout
    assert "refused p50, ms" in result.stdout
    assert "4 failed, the first with: HTTP 503: warming up" in result.stderr
    assert "every request failed: cascade" in result.stderr


def test_some_failures_do_not_fail_the_command(pets: Path) -> None:
    (pets / "cat" / "broken.jpg").write_bytes(image("fish"))

    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        return refusal(422, "bad_image", "not an image") if b"fish" in request.body else await cascade(request)

    with serving_in_thread(handler) as url:
        result = clean(bench(url, "--images", pets, "--json", "-"))
    (run,) = json.loads(result.stdout)["runs"]
    assert (result.exit_code, run["errors"], run["accuracy"]) == (0, {"422 bad_image": 1}, 0.75)


@pytest.mark.parametrize("kept", [0, 3])
def test_an_interrupt_ends_with_what_was_measured_until_then(pets: Path, kept: int) -> None:
    asked = 0

    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        nonlocal asked
        if request.path == "/predict":
            asked += 1
            if asked > kept:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
        return await cascade(request)

    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    with serving_in_thread(handler) as url:
        endless = ["--concurrency", "1", "--warmup", "0", "--duration", "60", "--json", "-"]
        result = clean(bench(url, "--images", pets, *endless))
    signal.signal(signal.SIGINT, own)
    assert result.exit_code == 1
    assert "interrupted" in result.stderr
    if kept:
        (run,) = json.loads(result.stdout)["runs"]
        assert run["interrupted"] is True
        assert run["succeeded"] == kept
    else:
        assert result.stdout == ""


def test_a_run_that_fails_leaves_the_report_of_those_before_it(pets: Path) -> None:
    async def only_s0(request: Request) -> bytes | tuple[bytes, ...]:
        known = request.path == "/bundle" or "max_stage" in request.query
        return await cascade(request) if known else b""

    with serving_in_thread(only_s0) as url:
        result = clean(bench(url, "--images", pets, "--compare", "threshold", "--json", "-"))
    assert [run["name"] for run in json.loads(result.stdout)["runs"]] == ["S0 alone"]
    assert result.exit_code == 1
    assert "adaptive: every warm-up request failed" in result.stderr


def test_a_report_that_cannot_be_written_ends_with_1(server: str, pets: Path, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300 + ".json")
    result = clean(bench(server, "--images", pets, "--json", path))
    assert (result.exit_code, "cannot write" in result.stderr) == (1, True)


def test_it_runs_as_a_module(pets: Path, server: str) -> None:
    command = [sys.executable, "-m", "bench", server, "--images", str(pets), "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["runs"][0]["succeeded"] == 4
    assert done.stderr == ""
