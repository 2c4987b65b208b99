"""Two encodings are undone and applied, within a limit on what comes out."""

from __future__ import annotations

import gzip
import zlib

import pytest

from cascade.errors import RequestError, TooLarge, UnsupportedType
from server.oip.compression import choose, compress, decompress

BODY = b"some text, some text, some text" * 100


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_compressed_comes_back(encoding: str) -> None:
    small = compress(BODY, encoding)
    assert len(small) < len(BODY)
    assert decompress(small, encoding, len(BODY)) == BODY


def test_the_formats_are_those_of_the_standard_library() -> None:
    assert decompress(gzip.compress(BODY), " GZIP ", 10_000) == BODY
    assert decompress(zlib.compress(BODY), "deflate", 10_000) == BODY
    assert gzip.decompress(compress(BODY, "gzip")) == zlib.decompress(compress(BODY, "deflate")) == BODY


@pytest.mark.parametrize("encoding", [None, "", "identity", "Identity"])
def test_a_plain_body_stays_as_it_is(encoding: str | None) -> None:
    assert decompress(BODY, encoding, 10) is BODY


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 1000])
def test_other_encodings_are_not_understood(encoding: str) -> None:
    with pytest.raises(UnsupportedType, match="gzip or deflate") as caught:
        decompress(BODY, encoding, 10_000)
    assert len(str(caught.value)) < 200


def test_a_bomb_is_given_up_as_soon_as_it_passes_the_limit() -> None:
    with pytest.raises(TooLarge, match="larger than 1000 bytes once decompressed"):
        decompress(gzip.compress(b"\0" * 10_000_000), "gzip", 1000)
    assert decompress(gzip.compress(b"\0" * 1000), "gzip", 1000) == b"\0" * 1000


BAD = {
    "plain": BODY,
    "empty": b"",
    "cut short": gzip.compress(BODY)[:-1],
    "two members": gzip.compress(BODY) * 2,
    "rubbish behind": gzip.compress(BODY) + b"x",
    "a wrong sum": gzip.compress(BODY)[:-8] + b"\0" * 8,
    "another format": zlib.compress(BODY),
}


@pytest.mark.parametrize("case", BAD)
def test_a_body_that_is_not_what_its_header_says_is_refused(case: str) -> None:
    with pytest.raises(RequestError, match=r"not .*gzip"):
        decompress(BAD[case], "gzip", 10_000)


CHOICES = {
    None: None,
    "": None,
    "br": None,
    "*": None,
    "gzip": "gzip",
    "deflate": "deflate",
    "gzip, deflate, br": "gzip",
    "Deflate;q=0.9, gzip ; q=0.5": "deflate",
    "gzip;q=0": None,
    "gzip;q=0, deflate": "deflate",
    "gzip;q=nan": None,
    "gzip;level=9": None,
    "gzip;q=1.000": "gzip",
}


@pytest.mark.parametrize("accept", CHOICES)
def test_an_answer_takes_the_encoding_that_the_client_likes_best(accept: str | None) -> None:
    assert choose(accept) == CHOICES[accept]
