"""Every error bench raises on purpose; each ends a command with one line and an exit code.

    BenchError              1   the measurement failed
    ├── AskedWrongly        2   an option, a folder or an address makes no sense
    └── ClientError         1   one request got no answer that can be used
        ├── Unreachable         no connection could be made
        ├── Dropped             the connection ended before the answer did
        ├── TimedOut            no whole answer before the deadline
        ├── BadAnswer           bytes that are not HTTP, or not the JSON that was agreed
        └── Refused             the server answered 4xx or 5xx

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
    """The question itself is wrong; nothing was measured."""

    exit_code = 2


class ClientError(BenchError):
    """One request failed.

    Attributes:
        kind: stable name under which reports count it.
    """

    kind = "error"


class Unreachable(ClientError):
    """No connection could be made."""

    kind = "unreachable"


class Dropped(ClientError):
    """The connection ended before the answer did."""

    kind = "dropped"


class TimedOut(ClientError):
    """No whole answer before the deadline."""

    kind = "timeout"


class BadAnswer(ClientError):
    """An answer came, and it cannot be understood."""

    kind = "bad_answer"


class Refused(ClientError):
    """The server answered with an error.

    Args:
        status: HTTP status.
        code: the server's own name for the error, empty if it gave none.
        message: the server's own words.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.code = code
        self.kind = f"{status} {code}".strip()
