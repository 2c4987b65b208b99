"""The port: asked for or not, taken or free, shared by workers, with certificates, and what is missing for it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `grpc`")
pytest.importorskip("google.protobuf", reason="needs the extra `grpc`")

import grpc

from cascade.errors import ServiceError
from server.app import create_app
from server.port import listening
from server.process import serve
from server.rpc.listener import Listener, credentials_of
from server.rpc.messages import INFERENCE, RESPONSES
from server.rpc.port import NoPort, check_free, check_installed, port_of
from server.settings import ServerSettings
from tests.builders import FakeRuntime, random_inputs, write_tiny_bundle
from tests.server.grpc.harness import FakeMeter, connected
from tests.server.grpc.makers import infer
from tests.server.harness import settings_for_tests
from tests.server.oip.fakes import FakeModels
from tests.server.test_server_process import end_us
from tests.serving import RESCADE, ROOT, free_port, served

SURE = np.array([[[9.0, 0.0]]])

WITHOUT = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
import rescade
rescade.main(sys.argv[2:], prog_name="rescade")
"""
LOADED = """
import sys
from server.app import create_app
from server.settings import ServerSettings
create_app(ServerSettings(bundle="nowhere"))
print(sorted({"grpc", "google.protobuf"} & set(sys.modules)))
"""


class WithCertificates(ServerSettings):
    """Settings that have certificates."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", *kind, *names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def live(channel: grpc.Channel) -> bool:
    """Ask a server whether it lives."""
    ask = channel.unary_unary(f"/{INFERENCE}/ServerLive", response_deserializer=RESPONSES["ServerLive"].FromString)
    found: bool = ask(b"", timeout=30, wait_for_ready=True).live
    return found


async def test_without_a_setting_there_is_no_port() -> None:
    settings = settings_for_tests()
    port = port_of(settings, FakeModels(), FakeMeter())
    assert isinstance(port, NoPort)
    await port.open()
    port.begin_close()
    await port.close()
    check_installed(settings)
    check_free(settings)


async def test_with_one_there_is() -> None:
    port = port_of(settings_for_tests(grpc_port=0), FakeModels(), FakeMeter())
    assert isinstance(port, Listener)
    await port.close()
    await port.open()
    assert port.port > 0
    port.begin_close()
    await port.close()


def test_grpc_is_not_loaded_where_no_port_is_asked_for() -> None:
    found = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf", "google"])
def test_a_port_is_refused_without_what_it_needs(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "google":
        monkeypatch.delitem(sys.modules, "google.protobuf", raising=False)
    with pytest.raises(ServiceError, match="pip install 'rescade"):
        create_app(settings_for_tests(grpc_port=0))
    create_app(settings_for_tests())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_says_what_to_install(workers: str, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    options = ["--port", "0", "--workers", workers, "--grpc-port", str(free_port())]
    command = [sys.executable, "-c", WITHOUT, '["grpc"]', "serve", str(tmp_path / "bundle"), *options]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "pip install 'rescade[grpc]'" in found.stderr
    assert "Traceback" not in found.stderr


async def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"127.0.0.1:{port}"):
            await Listener(settings_for_tests(grpc_port=port), FakeModels(), FakeMeter(), print).open()
        with pytest.raises(OSError, match="in use"):
            check_free(settings_for_tests(grpc_port=port))


def test_workers_need_a_port_with_a_number() -> None:
    with pytest.raises(ServiceError, match="name one"):
        check_free(settings_for_tests(grpc_port=0))


def test_a_port_that_cannot_be_opened_ends_the_process_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_for_tests(port=0, grpc_port=taken.getsockname()[1])
        with listening(settings) as ports:
            failure = serve(settings, [FakeRuntime(SURE)], ports, lambda: pytest.fail("it is not ready"))
    assert isinstance(failure, ServiceError)
    assert "cannot listen for gRPC" in str(failure)


async def test_an_address_of_the_other_family_is_listened_on() -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("there is no IPv6 here")
    listener = Listener(settings_for_tests(grpc_port=0, host="::1"), FakeModels(), FakeMeter(), print)
    await listener.open()
    async with connected(listener.port, "[::1]") as client:
        assert (await client.ask("ServerLive")).live
    await listener.close()


def test_a_process_answers_what_is_in_hand_after_the_signal() -> None:
    entered, held = threading.Event(), threading.Event()
    sizes: list[int] = []

    def before(stage: int) -> None:
        entered.set()
        held.wait(10)

    def ask() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            call = channel.unary_unary(f"/{INFERENCE}/ModelInfer").future(
                infer(FakeRuntime.images([0]), model="tiny").SerializeToString()
            )
            entered.wait(10)
            end_us()
            threading.Timer(0.3, held.set).start()
            sizes.append(len(call.result(timeout=30)))

    settings = settings_for_tests(port=0, grpc_port=free_port())
    with listening(settings) as ports:
        asker = threading.Thread(target=ask)
        assert serve(settings, [FakeRuntime(SURE, before)], ports, asker.start) is None
        asker.join()
    assert sizes[0] > 0


def test_workers_share_one_port(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    port = free_port()
    command = [*RESCADE, "serve", str(tmp_path / "bundle"), "--workers", "2", "--grpc-port", str(port)]
    with served(command, tmp_path / "log"):
        for _ in range(8):
            options = (("grpc.use_local_subchannel_pool", 1),)
            with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                assert live(channel)
                body = infer(random_inputs(1), model="tiny").SerializeToString()
                channel.unary_unary(f"/{INFERENCE}/ModelInfer")(body, timeout=30)
    assert (tmp_path / "log").read_text().count('"event": "gRPC"') == 2


async def test_certificates_of_the_settings_are_used(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    settings = WithCertificates(bundle=Path("nowhere"), grpc_port=0, tls_cert=cert, tls_key=key)
    listener = Listener(settings, FakeModels(), FakeMeter(), print)
    await listener.open()
    trust = grpc.ssl_channel_credentials(cert.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{listener.port}", trust) as channel:
        assert await channel.unary_unary(f"/{INFERENCE}/ServerLive")(b"") == b"\x08\x01"
    await listener.close()


async def test_with_an_authority_clients_have_to_show_a_certificate(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    settings = WithCertificates(bundle=Path("nowhere"), grpc_port=0, tls_cert=cert, tls_key=key, tls_ca=cert)
    listener = Listener(settings, FakeModels(), FakeMeter(), print)
    await listener.open()
    known = grpc.ssl_channel_credentials(cert.read_bytes(), key.read_bytes(), cert.read_bytes())
    stranger = grpc.ssl_channel_credentials(cert.read_bytes())
    address = f"127.0.0.1:{listener.port}"
    async with grpc.aio.secure_channel(address, known) as channel:
        assert await channel.unary_unary(f"/{INFERENCE}/ServerLive")(b"") == b"\x08\x01"
    async with grpc.aio.secure_channel(address, stranger) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(f"/{INFERENCE}/ServerLive")(b"")
    await listener.close()


def test_a_certificate_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    settings = WithCertificates(bundle=Path("nowhere"), tls_cert=tmp_path / "none", tls_key=tmp_path / "none")
    with pytest.raises(ServiceError, match="certificate"):
        credentials_of(settings)
