"""Models that change while they serve, in real processes, under load: nobody notices but by the version."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.builders import encoded, random_photo, write_tiny_bundle
from tests.server.running import children, connections, serve_here, started, wait_for

KEY = "administrator"
MANAGE = {"X-Admin-Key": KEY}
PNG = {"Content-Type": "image/png"}
PHOTO = encoded(random_photo())
OWN = {"1": 0.6, "2": 0.7}
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write(tmp_path / "tiny", "1")
    return tmp_path / "tiny"


def write(folder: Path, version: str) -> None:
    write_tiny_bundle(folder, version=version, threshold=OWN[version])


@contextmanager
def managed(*arguments: object, workers: int = 2) -> Iterator[tuple[subprocess.Popen[str], str, httpx.Client]]:
    """A server with several workers, and a client that may manage it."""
    with (
        started(*arguments, "--workers", workers, "--admin-key-sha256", DIGEST) as (process, url),
        httpx.Client(base_url=url, headers=MANAGE, timeout=30) as client,
    ):
        yield process, url, client


def ask(client: httpx.Client) -> tuple[str, float]:
    """Version and threshold of an answer."""
    response = client.post("/predict", content=PHOTO, headers=PNG)
    assert response.status_code == 200, response.text
    return response.json()["version"], response.json()["threshold"]


class Load:
    """Clients that ask without a pause, and what they were told, and when."""

    def __init__(self, url: str, clients: int) -> None:
        self.answers: list[tuple[float, float, str, float]] = []
        self.failures: list[Exception | AssertionError] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    version, threshold = ask(client)
                except (httpx.HTTPError, AssertionError) as error:
                    self.failures.append(error)
                    return
                self.answers.append((began, time.monotonic(), version, threshold))


def test_reloads_and_changes_under_load_fail_no_request_and_every_answer_is_of_one_moment(bundle: Path) -> None:
    with managed(bundle) as (_, url, client), Load(url, 4) as load:
        served, overridden = [(0.0, "1")], list[tuple[float, float]]()
        for number in range(10):
            version = "21"[number % 2]
            write(bundle, version)
            assert client.post("/admin/reload").status_code == 200
            served.append((time.monotonic(), version))
            began = time.monotonic()
            assert client.patch("/admin/models/tiny", json={"threshold": 0.9}).status_code == 200
            assert ask(client) == (version, 0.9)
            assert client.patch("/admin/models/tiny", json={"threshold": None}).status_code == 200
            overridden.append((began, time.monotonic()))
    assert load.failures == []
    assert {version for _, _, version, _ in load.answers} == {"1", "2"}
    for began, ended, version, threshold in load.answers:
        in_force = any(start < ended and began < stop for start, stop in overridden)
        assert threshold == OWN[version] or (threshold == 0.9 and in_force)
        since = [(at, each) for at, each in served if at <= began][-1]
        later = [each for at, each in served if at > began][:1]
        assert version in (since[1], *later)


def test_a_broken_new_bundle_leaves_the_old_one_serving(bundle: Path) -> None:
    with managed(bundle) as (process, _, client):
        write(bundle, "2")
        (bundle / "stage1.onnx").write_bytes(b"cut")
        response = client.post("/admin/reload")
        answers = {ask(client) for _ in range(4)}
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert (response.status_code, answers) == (422, {("1", 0.6)})
    assert '"level": "error", "logger": "server.control", "event": "bundle not loaded"' in log


def test_a_bundle_that_no_runtime_can_open_leaves_the_old_one_serving(bundle: Path) -> None:
    from cascade.bundle import write as write_bundle
    from tests.builders import tiny_manifest

    with managed(bundle) as (_, _, client):
        models = [b"no network", b"no network either"]
        files = {f"stage{number}.onnx": model for number, model in enumerate(models)}
        write_bundle(bundle, tiny_manifest(models, version="2"), files)
        response = client.post("/admin/reload")
        assert "onnxruntime cannot load it" in response.json()["error"]["message"]
        assert ask(client) == ("1", 0.6)


def test_a_killed_workers_replacement_serves_what_the_others_do_whatever_is_on_the_disk(bundle: Path) -> None:
    with managed(bundle) as (process, url, client):
        write(bundle, "2")
        client.post("/admin/reload")
        client.patch("/admin/models/tiny", json={"threshold": 0.9})
        client.close()
        (bundle / "manifest.json").unlink()
        first, second = children(process.pid)
        os.kill(first, signal.SIGKILL)
        newcomer = replacement(process.pid, {first, second})
        wait_for(lambda: reached(newcomer, url))
        os.kill(second, signal.SIGKILL)
        with httpx.Client(base_url=url, timeout=30) as again:
            assert {ask(again) for _ in range(10)} == {("2", 0.9)}


@pytest.mark.parametrize("place", [0, 1])
def test_a_worker_that_hangs_during_a_reload_is_replaced_and_the_reload_is_not_held_up(
    bundle: Path, place: int
) -> None:
    with managed(bundle, "--reload-timeout-s", 3) as (process, url, _):
        before = children(process.pid)
        os.kill(before[place], signal.SIGSTOP)
        write(bundle, "2")
        process.send_signal(signal.SIGHUP)
        newcomer = replacement(process.pid, set(before))
        process.send_signal(signal.SIGHUP)  # where the one that hung was the first to try, nothing was loaded
        wait_for(lambda: reached(newcomer, url))
        wait_for(lambda: told(url) == ("2", 0.7))
        assert {told(url) for _ in range(8)} == {("2", 0.7)}


def told(url: str) -> tuple[str, float]:
    """Version and threshold of an answer on a connection of its own."""
    with httpx.Client(base_url=url, timeout=30) as client:
        return ask(client)


def replacement(pid: int, before: set[int]) -> int:
    wait_for(lambda: len(set(children(pid)) - before) == 1)
    [found] = set(children(pid)) - before
    return found


def reached(pid: int, url: str) -> bool:
    """Whether a process has one of some new connections."""
    with spread(url, 4):
        return connections(pid, port_of(url)) > 0


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


@contextmanager
def spread(url: str, count: int) -> Iterator[list[httpx.Client]]:
    """Some clients with a connection each that they keep."""
    clients = [httpx.Client(base_url=url, timeout=30) for _ in range(count)]
    try:
        for client in clients:
            assert client.get("/health/live").status_code == 200
        yield clients
    finally:
        for client in clients:
            client.close()


def test_eight_connections_over_two_workers_are_four_and_four(bundle: Path) -> None:
    with started(bundle, "--workers", "2") as (process, url):
        workers = children(process.pid)
        for _ in range(3):  # what has closed is counted no more
            with spread(url, 8):
                assert [connections(pid, port_of(url)) for pid in workers] == [4, 4]
            wait_for(lambda: sum(connections(pid, port_of(url)) for pid in workers) == 0)


def test_what_was_accepted_before_the_end_is_answered(bundle: Path) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
    with started(bundle, "--workers", "2") as (process, url):
        asked = [socket.create_connection(("127.0.0.1", port_of(url)), timeout=20) for _ in range(16)]
        for each in asked:
            each.sendall(head.encode() + PHOTO)
        process.send_signal(signal.SIGTERM)
        answers = [each.recv(65536).split(b"\r\n")[0] for each in asked]
        for each in asked:
            each.close()
        assert process.wait(20) == 0
    assert answers == [b"HTTP/1.1 200 OK"] * 16


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hang_up_reloads(bundle: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(url: str, said: list[str]) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            assert ask(client) == ("1", 0.6)
            (bundle / "stage0.onnx").rename(bundle / "aside")
            os.kill(os.getpid(), signal.SIGHUP)
            (bundle / "aside").rename(bundle / "stage0.onnx")
            write(bundle, "2")
            os.kill(os.getpid(), signal.SIGHUP)
            wait_for(lambda: ask(client) == ("2", 0.7))

    serve_here([bundle, "--workers", workers], monkeypatch, use)


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_hang_up_that_would_leave_nothing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "all" / "tiny", "1")
    (tmp_path / "all" / "other").mkdir()

    def use(url: str, said: list[str]) -> None:
        (tmp_path / "all" / "tiny").rename(tmp_path / "tiny")
        write(tmp_path / "all" / "tiny", "2")
        (tmp_path / "all" / "tiny" / "stage0.onnx").unlink()
        with httpx.Client(base_url=url, timeout=30) as client:
            os.kill(os.getpid(), signal.SIGHUP)
            assert ask(client) == ("1", 0.6)

    serve_here([tmp_path / "all"], monkeypatch, use)


@pytest.mark.usefixtures("logging_as_it_was")
def test_workers_are_managed_from_within_python_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(url: str, said: list[str]) -> None:
        with httpx.Client(base_url=url, headers=MANAGE, timeout=30) as client:
            changed: dict[str, Any] = client.patch("/admin/models/tiny", json={"threshold": 0.9}).json()
            assert changed["new"]["threshold"] == 0.9
            assert ask(client) == ("1", 0.9)

    serve_here([bundle, "--workers", 2, "--admin-key-sha256", DIGEST], monkeypatch, use)
