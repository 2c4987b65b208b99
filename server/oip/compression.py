"""Compressed bodies: gzip, and deflate in the zlib format. Nothing else, since clients decode nothing else.

A body may be one gzip member or one zlib stream and no more; a chain of millions of empty members would cost a worker
minutes and hold no data.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from cascade.errors import RequestError, TooLarge, UnsupportedType

ACCEPTED = "gzip, deflate"
_WINDOW: Mapping[str, int] = {"gzip": 31, "deflate": 15}  # zlib's wbits: 15, and 16 more for gzip's header
_LEVEL = 1  # tensors barely shrink; higher levels cost and gain nothing


def decompress(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Undo a content encoding.

    Args:
        body: as it was sent.
        encoding: the header Content-Encoding.
        limit: bytes there may be afterwards.

    Raises:
        UnsupportedType: the encoding is neither gzip nor deflate.
        TooLarge: more comes out than the limit.
        RequestError: the body is not what the header says.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in _WINDOW:
        raise UnsupportedType(f"Content-Encoding {name[:60]!r} is not understood: send the body plain, gzip or deflate")
    stream = zlib.decompressobj(_WINDOW[name])
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not {name}, as its Content-Encoding says: {error}") from error
    if len(found) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes once decompressed: send fewer or smaller images")
    if not stream.eof or stream.unused_data:
        raise RequestError(f"the body is not one whole {name} stream, as its Content-Encoding says")
    return found


def choose(accept: str | None) -> str | None:
    """The encoding a client would like best, of those there are; gzip of two alike, and None for none.

    Args:
        accept: the header Accept-Encoding.
    """
    weights = dict.fromkeys(_WINDOW, 0.0)
    for item in (accept or "").lower().split(","):
        name, _, rest = item.partition(";")
        if (name := name.strip()) in weights:
            weights[name] = _weight(rest)
    best = max(weights, key=lambda name: weights[name])
    return best if weights[best] > 0 else None


def _weight(text: str) -> float:
    """The weight after `;q=`: 1 where there is none, 0 where it is not understood."""
    if not text.strip():
        return 1.0
    found = re.fullmatch(r"\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*", text)
    return float(found[1]) if found else 0.0


def compress(body: bytes, encoding: str) -> bytes:
    """Apply a content encoding.

    Args:
        body: plain.
        encoding: gzip or deflate.
    """
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOW[encoding])
    return stream.compress(body) + stream.flush()
