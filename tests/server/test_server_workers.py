"""The parent of several workers: it starts them, replaces them, and ends them all."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server import workers
from server.metrics import FOLDER_VARIABLE
from server.workers import SPAWN, Parent, work
from tests.builders import write_tiny_bundle
from tests.server import worker_targets
from tests.server.harness import settings_for_tests


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def end_us() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_ends_the_workers_and_leaves_things_as_they_were(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "before")
    handler = signal.getsignal(signal.SIGTERM)
    seen: list[Path] = []

    def on_ready() -> None:
        seen.append(Path(os.environ[FOLDER_VARIABLE]))
        assert seen[0].is_dir()
        end_us()

    parent = Parent(settings_for_tests(workers=2), listener, on_ready, worker_targets.steady)
    assert parent.run() is None
    assert signal.getsignal(signal.SIGTERM) is handler
    assert os.environ[FOLDER_VARIABLE] == "before"
    assert not seen[0].exists()


@pytest.mark.parametrize(
    ("target", "reason"),
    [(worker_targets.unlucky, "no luck today"), (worker_targets.mute, "before it was ready, with exit code 7")],
)
def test_a_worker_that_cannot_start_ends_them_all_with_its_reason(
    target: Callable[..., None], reason: str, listener: socket.socket
) -> None:
    failure = Parent(settings_for_tests(workers=2), listener, lambda: None, target).run()
    assert reason in str(failure)


def test_a_worker_that_dies_is_replaced(
    listener: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = []
    settings = settings_for_tests(workers=1, bundle=tmp_path / "died")
    parent = Parent(settings, listener, lambda: times.append(1), worker_targets.replaced)
    assert parent.run() is None
    assert times == [1]
    assert [record.__dict__["fields"]["exit_code"] for record in caplog.records] == [9]


def test_a_worker_that_does_not_end_is_killed(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MARGIN_S", 0.0)
    settings = settings_for_tests(workers=1, drain_timeout_s=0.1)
    parent = Parent(settings, listener, end_us, worker_targets.stubborn)
    assert parent.run() is None
    assert parent._workers[0].process.exitcode == -signal.SIGKILL


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_worker_tells_its_parent_why_it_cannot_serve(listener: socket.socket, tmp_path: Path) -> None:
    ours, theirs = SPAWN.Pipe()
    with pytest.raises(SystemExit) as ended:
        work(settings_for_tests(bundle=tmp_path), listener, theirs)
    assert ended.value.code == 1
    assert "manifest.json" in ours.recv()


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_worker_tells_its_parent_that_it_is_ready_and_does_not_outlive_it(
    listener: socket.socket, tmp_path: Path
) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    ours, theirs = SPAWN.Pipe()
    told = []

    def parent() -> None:
        told.append(ours.recv())
        ours.close()

    thread = threading.Thread(target=parent)
    thread.start()
    work(settings_for_tests(bundle=tmp_path / "tiny"), listener, theirs)
    thread.join()
    assert told == [None]


def test_a_worker_that_has_ended_anyway_is_not_ended_again() -> None:
    ours, theirs = SPAWN.Pipe()
    ended = threading.Event()
    ended.set()
    ours.close()
    workers._follow(theirs, ended)


def test_a_bundle_no_worker_can_open_is_told_once(listener: socket.socket, tmp_path: Path) -> None:
    failure = workers.supervise(settings_for_tests(workers=2, bundle=tmp_path), listener, lambda: None)
    assert str(failure).startswith("manifest.json: cannot read")
