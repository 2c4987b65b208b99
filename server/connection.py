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

from server.direct import Direct, Inquiry
from server.heads import METHOD, PATH, Head, Heads, read_head
from server.replies import Reply

ADDRESS = PATH.encode()
NEVER = float("inf")


class Silence:
    """In the place of an event that nobody waits for."""

    def set(self) -> None:
        """Tell nobody."""


class Turn:
    """A request from the end of its head to the end of its answer.

    Args:
        head: of the request.

    Attributes:
        head: the same.
        inquiry: what was made of it, once all of it is here.
        body: what has come of its body.
        keep_alive, more_body, disconnected, response_complete, message_event: as uvicorn reads and sets them.
    """

    message_event = Silence()

    def __init__(self, head: Head) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self.inquiry: Inquiry | None = None
        self.body = b""
        self.more_body = True
        self.disconnected = False
        self.response_complete = False


class Connection(HttpToolsProtocol):
    """Serves one connection.

    Args:
        direct: answers light questions.
        heads: that were read before, on any connection.
        given: what uvicorn gives.
    """

    cycle: Any  # uvicorn's, or a turn

    def __init__(self, direct: Direct, heads: Heads, **given: Any) -> None:
        super().__init__(**given)
        self._direct, self._heads = direct, heads
        self._coming: Turn | None = None
        self._asked: Turn | None = None
        self._between = True
        self._read = b""
        self._idle_since = NEVER

    def data_received(self, data: bytes) -> None:
        """Read; a question that is not whole by then is no light one."""
        if self._between and (self.cycle is None or self.cycle.response_complete):
            if (found := self._heads.find(data)) is not None:
                self._idle_since = NEVER
                self.cycle = turn = Turn(found[0])
                if self._ask(turn, found[1]):
                    return
                self.cycle = None
            self._read = data
        super().data_received(data)
        self._read = b""
        if self._coming is not None and not self.transport.is_closing():
            self._give_back(self._coming)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take a turn where this may be a light question and no other request is in hand."""
        head = self._head() if self.cycle is None or self.cycle.response_complete else None
        if head is None:
            super().on_headers_complete()
        else:
            self.cycle = self._coming = Turn(head)

    def _head(self) -> Head | None:
        url, parser = self.url, self.parser
        if not url.startswith(ADDRESS) or url[len(ADDRESS) :][:1] not in (b"", b"?") or b"#" in url:
            return None
        if parser.get_method() != METHOD.encode() or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return None
        return read_head(self.headers, url[len(ADDRESS) + 1 :], parser.should_keep_alive(), self._direct.largest)

    def on_body(self, body: bytes) -> None:
        """Keep what comes of a body."""
        if self._coming is None:
            super().on_body(body)
        else:
            self._coming.body += body

    def on_message_complete(self) -> None:
        """Ask, now that the question is whole."""
        self._between = True
        turn, self._coming = self._coming, None
        if turn is not None:
            if self._ask(turn, turn.body):
                self._heads.learn(self._read, turn.head)
                return
            self._give_back(turn)
        super().on_message_complete()

    def _ask(self, turn: Turn, body: bytes) -> bool:
        """Whether it is a light question, which is then asked."""
        turn.more_body = False
        self._asked = turn
        turn.inquiry = self._direct.ask(turn.head, self.client, body, partial(self._answer, turn))
        if turn.inquiry is None:
            self._asked = None
        return turn.inquiry is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back what nobody waits for any more."""
        super().connection_lost(exc)
        self._stop_clock()
        if self._asked is not None and self._asked.inquiry is not None:
            self._direct.withdraw(self._asked.inquiry)

    def _give_back(self, turn: Turn) -> None:
        """Let uvicorn do with a request what it would have done without us."""
        self._coming = self.cycle = None
        super().on_headers_complete()
        if turn.body:
            super().on_body(turn.body)

    def _answer(self, turn: Turn, reply: Reply) -> None:
        """Write the whole answer in one piece."""
        self._asked = None
        if self.transport.is_closing():
            return
        parts = [STATUS_LINE[reply.status]]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"content-type: ", reply.media_type, b"\r\ncontent-length: %d\r\n" % len(reply.body))
        for name, value in reply.headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n" if turn.keep_alive else b"connection: close\r\n\r\n", reply.body)
        self.transport.write(b"".join(parts))
        turn.response_complete = True
        if not turn.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Begin what has come meanwhile, or note since when the connection has been idle.

        uvicorn sets a timer for every silence and stops it at the next request. Here one is set for the first silence,
        and looks when it rings how long the last one has been.
        """
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wind(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self._idle_since < NEVER:
            left = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if left > 0:
                self._wind(left)
            else:
                super().timeout_keep_alive_handler()

    def _wind(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        """Note that the connection is idle no more."""
        self._idle_since = NEVER

    def _stop_clock(self) -> None:
        super()._unset_keepalive_if_required()
