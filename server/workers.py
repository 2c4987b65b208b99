"""Several server processes behind one port, and the parent that watches over them.

The parent opens the port, starts the workers and waits. A worker that dies is replaced at once. One that cannot start
ends them all, since its replacement could not start either: the reason is told once, and there is no loop. Every worker
writes its figures to a folder that the parent makes, so that each of them can answer for all.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from cascade.errors import CascadeError
from server.logs import configure
from server.metrics import FOLDER_VARIABLE
from server.port import SIGNALS
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

SPAWN = multiprocessing.get_context("spawn")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - writable in a container whose root is not; the folder in it is private
MARGIN_S = 5.0


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    ready: bool = False


class Parent:
    """Keeps the workers alive until a signal comes.

    Args:
        settings: handed to every worker.
        listener: the open port they share.
        on_ready: called once all are ready for the first time.
        target: what a worker runs: called with settings, listener and a pipe, into which it sends None once it is ready
            or the reason why it cannot be.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listener: socket.socket,
        on_ready: Callable[[], None],
        target: Callable[[ServerSettings, socket.socket, Connection], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._on_ready = on_ready
        self._target = target
        self._announced = False
        self._workers: list[_Worker] = []

    def run(self) -> str | None:
        """Start the workers and watch over them.

        Returns:
            Why they could not go on, or None after a signal.
        """
        with _metrics_folder(), _bell_on_signals() as bell:
            self._workers = [self._start() for _ in range(self._settings.workers)]
            try:
                return self._watch(bell)
            finally:
                self._stop()

    def _start(self) -> _Worker:
        ours, theirs = SPAWN.Pipe()  # both ways, so that a worker sees its parent go
        process = SPAWN.Process(target=self._target, args=(self._settings, self._listener, theirs))
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _watch(self, bell: Connection) -> str | None:
        while True:
            pipes = [worker.pipe for worker in self._workers if not worker.ready]
            rung = wait([bell, *pipes, *(worker.process.sentinel for worker in self._workers)])
            if bell in rung:
                return None
            for worker in list(self._workers):
                if worker.pipe in rung and not worker.ready:
                    if (failure := _heard(worker)) is not None:
                        return failure
                    worker.ready = True
                elif worker.process.sentinel in rung:
                    self._replace(worker)
            if not self._announced and all(worker.ready for worker in self._workers):
                self._announced = True
                self._on_ready()

    def _replace(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        fields = {"pid": worker.process.pid, "exit_code": worker.process.exitcode}
        logger.error("worker died", extra={"fields": fields})
        self._workers[self._workers.index(worker)] = self._start()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        give_up = time.monotonic() + self._settings.drain_delay_s + self._settings.drain_timeout_s + MARGIN_S
        for worker in self._workers:
            worker.process.join(max(0.0, give_up - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def supervise(settings: ServerSettings, listener: socket.socket, on_ready: Callable[[], None]) -> str | None:
    """Serve with several workers until a signal comes.

    Args:
        settings: handed to every worker.
        listener: an open port.
        on_ready: called once all are ready.

    Returns:
        Why they could not go on, or None after a signal.
    """
    return Parent(settings, listener, on_ready, work).run()


def work(settings: ServerSettings, listener: socket.socket, parent: Connection) -> None:
    """Be a worker: serve, and tell the parent once that it is ready, or why it cannot be."""
    from server.app import open_runtimes  # here, since the parent runs no network and needs no onnxruntime
    from server.process import serve

    configure(settings.log_level)
    ended = threading.Event()
    threading.Thread(target=_follow, args=(parent, ended), daemon=True).start()
    try:
        failure: Exception | None = serve(settings, open_runtimes(settings), listener, lambda: parent.send(None))
    except CascadeError as error:
        failure = error
    ended.set()
    if failure is not None:
        parent.send(str(failure))
        sys.exit(1)


def _follow(parent: Connection, ended: threading.Event) -> None:
    """Drain once the parent is gone, however it went: nobody would replace or end this worker any more."""
    wait([parent])
    if not ended.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _heard(worker: _Worker) -> str | None:
    try:
        failure: str | None = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return f"a worker ended before it was ready, with exit code {worker.process.exitcode}"
    return failure


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    before = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="rescade-metrics-", dir=place) as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(FOLDER_VARIABLE)
            if before is not None:
                os.environ[FOLDER_VARIABLE] = before


@contextlib.contextmanager
def _bell_on_signals() -> Iterator[Connection]:
    """A pipe that can be waited for beside others, and that a signal writes to."""
    bell, rope = SPAWN.Pipe(duplex=False)
    before = {number: signal.signal(number, lambda *_: rope.send_bytes(b"!")) for number in SIGNALS}
    try:
        yield bell
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        bell.close()
        rope.close()
