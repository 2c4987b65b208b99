"""Where a server is: one URL, checked once, taken apart for the socket and for the request line."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.errors import AskedWrongly

PREDICT = "/predict"


@dataclass(frozen=True)
class Address:
    """A server's base address.

    Attributes:
        host: name or IP address to connect to.
        port: TCP port.
        tls: whether to speak TLS.
        prefix: path in front of every route, empty or `/like/this`.
    """

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


def parse(url: str) -> Address:
    """Read a base URL; a trailing `/predict` or slash is taken off.

    Args:
        url: e.g. `http://127.0.0.1:8000` or `https://host/models/a/predict`.

    Raises:
        AskedWrongly: not an http or https URL, or one with a query, a fragment or a password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AskedWrongly(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise AskedWrongly(f"{url!r} is not an address; give one like http://127.0.0.1:8000")
    if parts.query or parts.fragment or parts.username is not None:
        raise AskedWrongly(f"{url!r} may hold scheme, host, port and path only; options have flags of their own")
    if not url.isascii() or any(mark.isspace() for mark in url):
        raise AskedWrongly(f"{url!r} holds marks a URL has to escape")
    tls = parts.scheme == "https"
    port = (443 if tls else 80) if port is None else port
    path = parts.path.rstrip("/").removesuffix(PREDICT).rstrip("/")
    return Address(host, port, tls, path)
