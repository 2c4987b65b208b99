"""Requests as bytes: the options of a question, its headers, and the head in front of its body."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from bench.address import PREDICT, Address
from bench.errors import AskedWrongly

BINARY = "application/octet-stream"


def predict_target(options: Mapping[str, float | bool | str | None]) -> str:
    """The path and query of a question.

    Args:
        options: by the server's names; `None` and `False` leave an option to the server.
    """
    given = {
        name: "true" if value is True else value
        for name, value in options.items()
        if value is not None and value is not False
    }
    return f"{PREDICT}?{urlencode(given)}" if given else PREDICT


def header(name: str, value: str) -> str:
    """One line of a head, its end included.

    Raises:
        AskedWrongly: the value holds marks that would end the line, or that a header cannot carry.
    """
    if not (value.isascii() and value.isprintable() and value):
        raise AskedWrongly(f"the header {name} takes printable ASCII, at least one mark")
    return f"{name}: {value}\r\n"


def encode(
    address: Address, method: str, target: str, body: bytes = b"", content_type: str | None = None, headers: str = ""
) -> bytes:
    """Write a whole request.

    Args:
        address: of the server.
        method: e.g. `POST`.
        target: path below the address's prefix, and query.
        body: all of it.
        content_type: the body's media type, if there is a body.
        headers: further lines, each with its end; see `header`.
    """
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    head = (
        f"{method} {address.prefix}{target} HTTP/1.1\r\nHost: {address.authority}\r\n"
        f"Accept: application/json\r\n{kind}{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body
