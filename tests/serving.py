"""A real server process on a free port, to its clean end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
RESCADE = (sys.executable, "-m", "rescade")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """This environment, with the interpreter's own commands first on the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@contextlib.contextmanager
def served(command: Sequence[str], log: Path, cwd: Path = ROOT) -> Iterator[str]:
    """Start a server, wait until it is ready, and see it end with 0 on SIGTERM.

    Args:
        command: without `--port`.
        log: file that takes all it prints.
        cwd: where it runs.
    """
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=cwd, env=environment(), stdout=file, stderr=file
        )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until /health/ready says 200; an assertion error with the server's own words where it ends before that."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise AssertionError(f"not ready after 60 s: {log.read_text()}")
