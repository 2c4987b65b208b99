"""Async tests here run on asyncio, the loop the server is for."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

OPENSSL = shutil.which("openssl")
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")
    handlers, levels = root.handlers[:], (root.level, uvicorn.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    uvicorn.setLevel(levels[1])
    logging.captureWarnings(False)


def openssl(*arguments: object) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: an authority, and a certificate of it for 127.0.0.1 with its key, plain and locked with `secret`."""
    if OPENSSL is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("keys")
    authority = ["-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=authority"]
    openssl("req", "-x509", "-nodes", *EC, *authority)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", "-nodes", *EC, "-keyout", folder / "key.pem", "-out", folder / "csr", "-subj", "/CN=server")
    signed = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2"]
    openssl("x509", "-req", "-in", folder / "csr", *signed, "-extfile", folder / "names", "-out", folder / "cert.pem")
    openssl("ec", "-in", folder / "key.pem", "-aes256", "-passout", "pass:secret", "-out", folder / "locked.pem")
    return folder
