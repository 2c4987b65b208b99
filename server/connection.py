"""One connection: uvicorn's own, with a short way for light questions.

uvicorn keeps for each connection the cycle of the request in hand: what has come of its body, whether its answer is
complete, and whether the connection outlives it. While a light question is in hand, its `Turn` stands in that place. So
requests that come behind it on the same connection, keep-alive, hanging up and shutting down are uvicorn's business, as
they always are. What turns out to be no light question is given back, and goes on as if this were not here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.direct import METHOD, PATH, Direct, Inquiry
from server.replies import Reply

ADDRESS = PATH.encode()


class Silence:
    """In the place of an event that nobody waits for."""

    def set(self) -> None:
        """Tell nobody."""


class Turn:
    """A request from the end of its head to the end of its answer.

    Args:
        keep_alive: whether the client may ask again on this connection.

    Attributes:
        inquiry: what was made of it, once all of it is here.
        body: what has come of its body.
        keep_alive, more_body, disconnected, response_complete, message_event: as uvicorn reads and sets them.
    """

    message_event = Silence()

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.inquiry: Inquiry | None = None
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_complete = False


class Connection(HttpToolsProtocol):
    """Serves one connection.

    Args:
        direct: answers light questions.
        given: what uvicorn gives.
    """

    cycle: Any  # uvicorn's, or a turn

    def __init__(self, direct: Direct, **given: Any) -> None:
        super().__init__(**given)
        self._direct = direct
        self._coming: Turn | None = None
        self._asked: Turn | None = None

    def data_received(self, data: bytes) -> None:
        """Read; a question that is not whole by then is no light one."""
        super().data_received(data)
        if self._coming is not None and not self.transport.is_closing():
            self._give_back(self._coming)

    def on_headers_complete(self) -> None:
        """Take a turn where this may be a light question and no other request is in hand."""
        url = self.url
        is_free = self.cycle is None or self.cycle.response_complete
        if not is_free or not url.startswith(ADDRESS) or url[len(ADDRESS) :][:1] not in (b"", b"?") or b"#" in url:
            super().on_headers_complete()
            return
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or parser.should_upgrade():
            super().on_headers_complete()
            return
        self.scope["method"], self.scope["path"] = METHOD, PATH
        self.scope["query_string"] = url[len(ADDRESS) + 1 :]
        self.cycle = self._coming = Turn(parser.should_keep_alive())

    def on_message_complete(self) -> None:
        """Ask, now that the question is whole."""
        turn, self._coming = self._coming, None
        if turn is not None:
            self._asked = turn
            turn.inquiry = self._direct.ask(
                self.scope,  # type: ignore[arg-type]
                bytes(turn.body),
                partial(self._answer, turn),
            )
            if turn.inquiry is not None:
                return
            self._give_back(turn)
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back what nobody waits for any more."""
        super().connection_lost(exc)
        if self._asked is not None and self._asked.inquiry is not None:
            self._direct.withdraw(self._asked.inquiry)

    def _give_back(self, turn: Turn) -> None:
        """Let uvicorn do with a request what it would have done without us."""
        self._coming = self._asked = self.cycle = None
        super().on_headers_complete()
        if turn.body:
            super().on_body(bytes(turn.body))

    def _answer(self, turn: Turn, reply: Reply) -> None:
        """Write the whole answer in one piece."""
        self._asked = None
        if self.transport.is_closing():
            return
        parts = [STATUS_LINE[reply.status]]
        length = b"%d" % len(reply.body)
        for name, value in (
            *self.server_state.default_headers,
            (b"content-type", reply.media_type),
            (b"content-length", length),
            *reply.headers,
        ):
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n" if turn.keep_alive else b"connection: close\r\n\r\n")
        parts.append(reply.body)
        self.transport.write(b"".join(parts))
        turn.response_complete = True
        if not turn.keep_alive:
            self.transport.close()
        self.on_response_complete()
