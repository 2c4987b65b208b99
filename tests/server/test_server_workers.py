"""The parent of several workers: it starts them, replaces them, and ends them all."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import cores, workers
from server.library import Library
from server.metrics import FOLDER_VARIABLE
from server.port import PUBLIC
from server.workers import Parent, Target
from tests.builders import write_tiny_bundle
from tests.server import worker_targets
from tests.server.harness import settings_for_tests


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def end_us() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def parent_of(
    target: Target, listener: socket.socket, on_ready: Callable[[], None] = lambda: None, **settings: Any
) -> Parent:
    given = settings_for_tests(**{"workers": 1, **settings})
    return Parent(given, {PUBLIC: listener}, Library(()), on_ready, target)


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

    assert parent_of(worker_targets.steady, listener, on_ready, workers=2).run() is None
    assert signal.getsignal(signal.SIGTERM) is handler
    assert os.environ[FOLDER_VARIABLE] == "before"
    assert not seen[0].exists()


def test_each_of_as_many_workers_as_cores_is_given_its_own(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "EVERY", frozenset({3, 8}))
    assert parent_of(worker_targets.placed, listener, end_us, workers=2, bundle=tmp_path).run() is None
    assert {path.name for path in tmp_path.iterdir()} == {"3", "8"}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (worker_targets.unlucky, "no luck today"),
        (worker_targets.mute, "before it was ready, with exit code 7"),
        (lambda settings, place: None, "a worker cannot be started: "),
    ],
)
def test_a_worker_that_cannot_start_ends_them_all_with_its_reason(
    target: Target, reason: str, listener: socket.socket
) -> None:
    assert reason in str(parent_of(target, listener, workers=2).run())


def test_a_worker_that_dies_is_replaced(
    listener: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "marks").mkdir()
    times = []
    parent = parent_of(worker_targets.late, listener, lambda: times.append(1), workers=2, bundle=tmp_path / "marks")
    assert parent.run() is None
    assert times == [1]
    assert [record.__dict__["fields"]["exit_code"] for record in died(caplog)] == [9, 7]
    assert "worker not started" in [record.getMessage() for record in caplog.records]


def died(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.getMessage() == "worker died"]


def test_a_worker_that_dies_as_it_gets_ready_ends_them_where_there_is_no_other(
    listener: socket.socket, tmp_path: Path
) -> None:
    parent = parent_of(worker_targets.replaced, listener, bundle=tmp_path / "died")
    assert "ended, or hung" in str(parent.run())


def test_a_worker_that_does_not_end_is_killed(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MARGIN_S", 0.0)
    parent = parent_of(worker_targets.stubborn, listener, end_us, drain_timeout_s=0.1)
    assert parent.run() is None
    assert parent._hands == []


def test_a_worker_that_is_about_to_end_gets_no_more_connections(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MARGIN_S", 0.0)
    parent = parent_of(worker_targets.leaving, listener, end_us, drain_timeout_s=0.1)
    assert parent.run() is None
    assert parent._door._seats == []


@pytest.mark.parametrize("times", [1, 2])
def test_the_port_closes_after_the_delay_or_at_the_second_signal(times: int, listener: socket.socket) -> None:
    def on_ready() -> None:
        for _ in range(times):
            end_us()

    parent = parent_of(worker_targets.steady, listener, on_ready, drain_delay_s=0.05 if times == 1 else 60)
    assert parent.run() is None
    assert listener.fileno() == -1


def test_a_bundle_no_worker_can_open_is_told_once(listener: socket.socket, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    library = Library([tmp_path])
    library.open()
    settings = settings_for_tests(workers=2, device="cuda:99")
    failure = workers.supervise(settings, {PUBLIC: listener}, library, lambda: None)
    assert "the GPU cannot be used" in str(failure)
