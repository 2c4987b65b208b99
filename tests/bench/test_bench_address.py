"""A server's address: what is accepted, what is refused, what goes into the Host header."""

from __future__ import annotations

import pytest

from bench.address import Address, parse
from bench.errors import AskedWrongly


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("http://127.0.0.1:8000/", Address("127.0.0.1", 8000)),
        ("http://127.0.0.1:8000/predict", Address("127.0.0.1", 8000)),
        ("http://127.0.0.1:8000/predict/", Address("127.0.0.1", 8000)),
        ("http://host/models/pets/predict", Address("host", 80, prefix="/models/pets")),
        ("https://host", Address("host", 443, tls=True)),
        ("HTTP://[::1]:8000", Address("::1", 8000)),
    ],
)
def test_an_address_is_read_with_or_without_the_route(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host?threshold=1",
        "http://host#part",
        "http://user:secret@host",
        "http://host/a b",
        "http://hôst",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(AskedWrongly):
        parse(url)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://host", "host"),
        ("http://host:443", "host:443"),
        ("https://host:443", "host"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_host_header_names_the_port_only_where_it_has_to(url: str, authority: str) -> None:
    assert parse(url).authority == authority


def test_an_address_reads_as_it_was_given() -> None:
    assert str(parse("https://host:8443/models/pets/predict")) == "https://host:8443/models/pets"
