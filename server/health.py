"""`rescade health`: whether a server on this machine is ready, for whoever watches its container.

It is asked where the server's own options or environment variables say that it listens, over TLS where they name a
certificate; on Linux 0.0.0.0 and :: lead to the machine itself. The certificate is not checked, as names rarely hold
for a machine's own address; where clients need one, it is shown as the client's.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from pathlib import Path

import click


@click.command("health")
@click.option("--host", envvar="RESCADE_HOST", default="127.0.0.1", metavar="ADDRESS", help="where it listens")
@click.option("--port", envvar="RESCADE_PORT", default=8000, help="where it listens")
@click.option("--tls-cert", envvar="RESCADE_TLS_CERT", type=Path, help="its certificate, if it speaks TLS")
@click.option("--tls-key", envvar="RESCADE_TLS_KEY", type=Path, help="the key, where clients need a certificate")
@click.option("--tls-key-password", envvar="RESCADE_TLS_KEY_PASSWORD", help="of that key")
@click.option("--tls-ca", envvar="RESCADE_TLS_CA", type=Path, help="authorities, where clients need a certificate")
@click.option("--timeout-s", default=2.0, show_default=True, help="longest wait")
def health(
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_key_password: str | None,
    tls_ca: Path | None,
    timeout_s: float,
) -> None:
    """Ask a server on this machine whether it is ready; say why not, and exit with 1.

    Give it what the server was given, as options or in the environment: it takes the same names.
    """
    try:
        context = None
        if tls_cert is not None:
            context = unverified()
            if tls_ca is not None:
                context.load_cert_chain(tls_cert, tls_key, lambda: tls_key_password or "")
        said = ready(host, port, context, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        said = str(error) or type(error).__name__
    if said is not None:
        click.echo(f"rescade: {host} port {port} is not ready: {' '.join(said.split())}", err=True)
        sys.exit(1)


def unverified() -> ssl.SSLContext:
    """TLS with whoever answers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ready(host: str, port: int, context: ssl.SSLContext | None, timeout_s: float) -> str | None:
    """What a server that is not ready says; None from one that is.

    Args:
        host: address of one machine.
        port: it listens on.
        context: how to speak TLS; None for plain HTTP.
        timeout_s: seconds that each step may take.

    Raises:
        OSError: it cannot be reached, or speaks TLS where HTTP was meant, or the other way round.
        HTTPException: what it says is no HTTP.
    """
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        return None if answer.status == 200 else answer.read().decode(errors="replace")[:500]
    finally:
        connection.close()
