"""`rescade health`: silence and 0 from a server that is ready, one line and 1 otherwise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from server.health import health
from server.settings import PREFIX, ServerSettings
from tests.builders import write_tiny_bundle
from tests.server.running import started


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def asked(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(health, list(map(str, arguments)), env=environment)


def port_of(url: str) -> str:
    return url.rpartition(":")[2].rstrip("/")


def refused(result: Result, port: object) -> str:
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    start = f"port {port} is not ready: "
    assert start in result.output
    return result.output.partition(start)[2].strip()


class NotYet(BaseHTTPRequestHandler):
    """Still warming up."""

    def do_GET(self) -> None:
        assert self.path == "/health/ready"
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"still\nwarming up")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def warming() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), NotYet) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        yield server.server_port


def test_a_server_that_is_ready_needs_no_words(bundle: Path) -> None:
    with started(bundle) as (_, url):
        for host in ("127.0.0.1", "0.0.0.0"):
            result = asked(RESCADE_HOST=host, RESCADE_PORT=port_of(url))
            assert (result.exit_code, result.output) == (0, "")


def test_it_speaks_tls_where_the_server_does(bundle: Path, keys: Path) -> None:
    with started(bundle, "--tls-cert", keys / "cert.pem", "--tls-key", keys / "key.pem") as (_, url):
        assert asked("--port", port_of(url), "--tls-cert", keys / "cert.pem").exit_code == 0
        assert refused(asked("--port", port_of(url)), port_of(url))


def test_it_shows_the_servers_certificate_where_clients_need_one(bundle: Path, keys: Path) -> None:
    files = ["--tls-cert", keys / "cert.pem", "--tls-key", keys / "locked.pem", "--tls-ca", keys / "ca.pem"]
    with started(bundle, *files, "--tls-key-password", "secret") as (_, url):
        port = port_of(url)
        assert asked("--port", port, *files, RESCADE_TLS_KEY_PASSWORD="secret").exit_code == 0
        assert refused(asked("--port", port, *files[:2]), port)
        assert refused(asked("--port", port, *files), port)


def test_a_server_that_is_not_ready_says_why() -> None:
    with warming() as port:
        assert refused(asked("--port", port), port) == "still warming up"


def test_nobody_there_is_not_ready() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert "refused" in refused(asked("--port", port), port)


def test_silence_is_not_ready() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        assert refused(asked("--port", port, "--timeout-s", 0.2), port) == "timed out"


def test_what_is_no_http_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def close_at_once() -> None:
            other.accept()[0].close()

        threading.Thread(target=close_at_once, daemon=True).start()
        port = other.getsockname()[1]
        assert refused(asked("--port", port), port)


def test_options_have_the_names_and_defaults_of_the_servers() -> None:
    given = health.make_context("health", []).params
    for option in health.params:
        if option.name != "timeout_s":
            field = ServerSettings.model_fields[str(option.name)]
            assert option.envvar == PREFIX + str(option.name).upper()
            assert given[str(option.name)] == field.default
