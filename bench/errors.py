"""Every error bench raises on purpose; each ends a command with one line and an exit code.

    BenchError              1   the measurement failed
    ├── AskedWrongly        2   an option, an image, a folder or an address makes no sense
    └── ClientError         1   one request got no answer that can be used
        ├── Unreachable         no connection could be made
        ├── Dropped             the connection ended before the answer did
        ├── TimedOut            no whole answer in time
        ├── Closed              the client was closed
        ├── BadAnswer           bytes that are not HTTP, or not the JSON that was agreed
        └── Refused             the server answered with another status than 200

Under load a `ClientError` is counted by its `kind` and the run goes on.
"""

from __future__ import annotations


class BenchError(Exception):
    """Root of the tree.

    Attributes:
        exit_code: what the command ends with.
    """

    exit_code = 1


class AskedWrongly(BenchError):
    """The question itself is wrong; nothing was sent."""

    exit_code = 2


class ClientError(BenchError):
    """One request failed.

    Attributes:
        kind: stable name under which reports count it.
    """

    kind = "error"


class Unreachable(ClientError):
    """No connection could be made.

    Args:
        message: to whom, and why.
        lasting: whether another try cannot help: the name or the certificate is wrong.
    """

    kind = "unreachable"

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class Dropped(ClientError):
    """The connection ended before the answer did.

    Args:
        message: when, and why.
        silent: whether it ended before the first byte of an answer.
    """

    kind = "dropped"

    def __init__(self, message: str, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class TimedOut(ClientError):
    """No whole answer in time."""

    kind = "timeout"


class Closed(ClientError):
    """The client was closed."""

    kind = "closed"


class BadAnswer(ClientError):
    """An answer came, and it cannot be understood."""

    kind = "bad_answer"


class Refused(ClientError):
    """The server answered with an error.

    Args:
        status: HTTP status.
        code: the server's own name for the error, empty if it gave none.
        message: the server's own words.
        request_id: the name of the request in the server's log, if it gave one.
        retry_after_s: how long the server asks to be left alone, seconds; `None` if it does not.
    """

    def __init__(
        self, status: int, code: str, message: str, request_id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.kind = f"{status} {code}".strip()
