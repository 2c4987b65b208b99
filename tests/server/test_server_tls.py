"""TLS on every port, with clients' certificates if wanted, and certificates that cannot be used told at once."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from server import __main__ as command_line
from tests.builders import write_tiny_bundle
from tests.server.running import serve_here, started, wait_for


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def trusting(keys: Path, with_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    if with_certificate:
        context.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    return context


@pytest.mark.parametrize("workers", [1, 2])
def test_it_speaks_tls_and_a_client_that_does_not_harms_nobody(keys: Path, bundle: Path, workers: int) -> None:
    files = ["--tls-cert", keys / "cert.pem", "--tls-key", keys / "key.pem"]
    with started(bundle, "--workers", workers, *files) as (_, url):
        assert url.startswith("https://")
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"))
        with httpx.Client(base_url=url, verify=trusting(keys)) as client:
            assert [client.get("/health/ready").status_code for _ in range(3)] == [200] * 3


def test_clients_need_a_certificate_of_the_authority_if_there_is_one(keys: Path, bundle: Path) -> None:
    files = ["--tls-cert", keys / "cert.pem", "--tls-key", keys / "locked.pem", "--tls-ca", keys / "ca.pem"]
    with started(bundle, *files, "--tls-key-password", "secret") as (_, url):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/bundle", verify=trusting(keys))
        assert httpx.get(f"{url}/bundle", verify=trusting(keys, with_certificate=True)).status_code == 200


REFUSED = {
    "a key that is locked": ["--tls-cert", "cert.pem", "--tls-key", "locked.pem"],
    "a certificate that is not there": ["--tls-cert", "nowhere.pem"],
    "an authority that is none": ["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--tls-ca", "key.pem"],
}


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_told_in_one_line(case: str, keys: Path, bundle: Path) -> None:
    arguments = [str(keys / each) if each.endswith("pem") else each for each in REFUSED[case]]
    result = CliRunner().invoke(command_line.serve, [str(bundle), "--port", "0", *arguments])
    assert result.exit_code == 1
    assert result.output.startswith(f"rescade: cannot serve {bundle}: tls_")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_admin_port_speaks_tls_too(keys: Path, bundle: Path, workers: int) -> None:
    files = ["--tls-cert", keys / "cert.pem", "--tls-key", keys / "key.pem"]
    with started(bundle, "--workers", workers, "--admin-port", "0", *files) as (process, url):
        assert process.stdout is not None
        admin = process.stdout.readline().rpartition(" at ")[2].strip()
        with httpx.Client(verify=trusting(keys)) as client:
            assert client.patch(f"{admin}/admin/models/tiny", json={"threshold": 0.9}).status_code == 200
            assert client.get(f"{url}/admin/models").status_code == 404
            assert client.get(f"{url}/models").json()["models"][0]["controls"]["threshold"] == 0.9
            wait_for(lambda: "rescade_requests_total" in client.get(f"{admin}/metrics").text)


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_managed_over_tls_from_within_python_too(
    keys: Path, bundle: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(url: str, said: list[str]) -> None:
        with httpx.Client(verify=trusting(keys), timeout=30) as client:
            wait_for(lambda: len(said) == 2)
            admin = said[1].rpartition(" at ")[2]
            assert client.get(f"{admin}/admin/models").json()["models"][0]["state"] == "READY"
            assert client.get(f"{url}/metrics").status_code == 404

    files = ["--tls-cert", keys / "cert.pem", "--tls-key", keys / "key.pem"]
    serve_here([bundle, "--workers", workers, "--admin-port", 0, *files], monkeypatch, use)
