"""The heads of light questions, and those that were read before.

A client sends the same head with every question, but for the length of the body where that varies. Reading one byte by
byte takes a tenth of a light network's time, so a process remembers the last ones as they came: the same bytes mean
the same thing. What has no twin to come, a head with an id of its own, is not remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

METHOD, PATH = "POST", "/predict"
KINDS = frozenset({b"image/jpeg", b"application/octet-stream"})
UNUSUAL = frozenset({b"content-encoding", b"expect", b"transfer-encoding", b"upgrade"})
OWN = frozenset({b"x-request-id", b"traceparent"})  # headers that differ from request to request
END = b"\r\n\r\n"
LONGEST, MOST = 2048, 1024  # bytes of a head that is remembered, and heads


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a light question says.

    Attributes:
        headers: names in lower case, each of them once.
        named: the same, by name.
        query: of the address.
        length: bytes of the body.
        keep_alive: whether the client may ask again on this connection.
    """

    headers: Sequence[tuple[bytes, bytes]]
    named: dict[bytes, bytes]
    query: bytes
    length: int
    keep_alive: bool


def read_head(headers: Sequence[tuple[bytes, bytes]], query: bytes, keep_alive: bool, largest: int) -> Head | None:
    """Judge the head of a `POST /predict` in HTTP/1.1.

    Args:
        headers: names in lower case.
        query: of the address.
        keep_alive: whether the client may ask again on this connection.
        largest: bytes of a body that is light.

    Returns:
        None where the request is not one of those that can be answered the short way; what is odd is for the ordinary
        way to judge.
    """
    named = dict(headers)
    if named.get(b"content-type") not in KINDS or len(named) != len(headers) or not UNUSUAL.isdisjoint(named):
        return None
    length = named.get(b"content-length", b"")
    if not length.isdigit() or len(length) > 9 or int(length) > largest:
        return None
    return Head(headers, named, query, int(length), keep_alive)


class Heads:
    """Heads as they came, with what they say."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """What has been read of a connection that is between two requests, if it is one question with a known head.

        Returns:
            What its head says, and its body, which is whole; else None.
        """
        start = data.find(END, 0, LONGEST) + len(END)
        head = self._known.get(data[:start])
        return None if head is None or len(data) - start != head.length else (head, data[start:])

    def learn(self, data: bytes, head: Head) -> None:
        """Remember a head.

        Args:
            data: one whole question, as it came.
            head: what its head was found to say.
        """
        start = data.find(END, 0, LONGEST) + len(END)
        if len(data) - start == head.length and OWN.isdisjoint(head.named):
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[data[:start]] = head
