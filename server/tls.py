"""Certificates, looked at before the port is opened, so that a wrong one is told in one line."""

from __future__ import annotations

import ssl
from typing import Any

from cascade.errors import CascadeError
from server.settings import ServerSettings


def options(settings: ServerSettings) -> dict[str, Any]:
    """What uvicorn is told of them."""
    if settings.tls_cert is None:
        return {}
    return {
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
        "ssl_keyfile_password": _password(settings) or None,
        "ssl_ca_certs": settings.tls_ca,
        "ssl_cert_reqs": ssl.CERT_NONE if settings.tls_ca is None else ssl.CERT_REQUIRED,
    }


def check(settings: ServerSettings) -> None:
    """See whether the files can be used.

    Raises:
        CascadeError: they cannot.
    """
    if settings.tls_cert is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, lambda: _password(settings))
    except OSError as error:
        raise CascadeError(f"tls_cert {settings.tls_cert}, tls_key {settings.tls_key}: {error}") from error
    if settings.tls_ca is not None:
        try:
            context.load_verify_locations(settings.tls_ca)
        except OSError as error:
            raise CascadeError(f"tls_ca {settings.tls_ca}: {error}") from error


def _password(settings: ServerSettings) -> str:
    """Empty if there is none: OpenSSL would ask on the terminal otherwise, and wait."""
    return "" if settings.tls_key_password is None else settings.tls_key_password.get_secret_value()
