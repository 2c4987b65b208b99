"""A server in processes of its own, and what can be seen of them from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import httpx
import pytest

from server import __main__ as command_line

ROOT = Path(__file__).parents[2]


@contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and its address once it is ready."""
    command = [sys.executable, "-m", "server", *map(str, arguments), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        try:
            found = re.search(r" at (https?://\S+)\n", process.stdout.readline())
            if found is None:
                process.kill()
            assert found is not None, process.stderr.read() if process.stderr else ""
            yield process, found[1]
        finally:
            process.kill()


def metrics(url: str) -> str:
    """What one of the workers says for all."""
    return httpx.get(f"{url}/metrics").text


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds: workers tell each other their counts a few hundredths of a second late."""
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes of ours that serve, by the parent's account; multiprocessing's own helper is no worker."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def connections(pid: int, port: int) -> int:
    """Connections to a port that a process has open."""
    names = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            names.append(str(path.readlink()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if int(row[1].split(":")[1], 16) == port and row[3] == "01"}
    return len(ours.intersection(names))


def serve_here(
    arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch, use: Callable[[str, list[str]], None]
) -> None:
    """Serve from this process, use it from another thread, and end it.

    Args:
        arguments: of the command line, beside the port.
        monkeypatch: catches what is said.
        use: called with the address, and all that has been said.
    """
    failures: list[BaseException] = []
    said: list[str] = []

    def act() -> None:
        try:
            use(said[0].rpartition(" at ")[2], said)
        except BaseException as error:  # raised below
            failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    def hear(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            user.start()

    user = threading.Thread(target=act)
    monkeypatch.setattr(click, "echo", hear)
    command_line.serve.main([*map(str, arguments), "--port", "0"], standalone_mode=False)
    user.join()
    assert failures == []
