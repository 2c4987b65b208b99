"""A multipart body in memory, to its parts.

The body was read whole under its limit, so nothing is spooled to disk: the server runs on a read-only root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cascade.errors import RequestError, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


@dataclass
class Part:
    """One part of a form.

    Attributes:
        data: its bytes.
        headers: names in lower case.
    """

    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The form field."""
        return self._disposition().get(b"name", b"").decode("utf-8", "replace")

    @property
    def is_file(self) -> bool:
        """Whether it is a file and not a plain field: it has a file name, or says it is an image."""
        return b"filename" in self._disposition() or self.headers.get("content-type", "").startswith("image/")

    def _disposition(self) -> dict[bytes, bytes]:
        options: dict[bytes, bytes] = parse_options_header(self.headers.get("content-disposition", ""))[1]
        return options


class _Collector:
    """Gathers parts from the parser's callbacks."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._data: list[bytes] = []
        self._field = self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self.on_part_begin,
            "on_part_data": self.on_part_data,
            "on_part_end": self.on_part_end,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise TooLarge(f"the form has more than {self._max_parts} parts: send fewer images a request")
        self.parts.append(Part())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def on_part_end(self) -> None:
        self.parts[-1].data = b"".join(self._data)
        self._data.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self.parts[-1].headers[self._field.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._field = self._value = b""

    def on_end(self) -> None:
        self.ended = True


def read_parts(content_type: str, body: bytes, max_parts: int) -> list[Part]:
    """Take a form apart.

    Args:
        content_type: the header, with its boundary.
        body: all of it.
        max_parts: more are refused.

    Raises:
        RequestError: it is not a form, or ends too early.
        TooLarge: it has more than `max_parts`.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError(
            "a multipart body needs a boundary in its Content-Type: let the HTTP client write that header"
        )
    found = _Collector(max_parts)
    try:
        parser = MultipartParser(boundary, found.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(f"the body is not a multipart form: {error}") from error
    if not found.ended:
        raise RequestError("the multipart form ends before its last boundary: send all of it")
    return found.parts
