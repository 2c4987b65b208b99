"""When to ask again: facts in, seconds out. No clock and no chance of its own.

A question may be sent twice, since asking changes nothing. It is sent again only where that is of use: no connection
could be made; the connection ended before the first byte of an answer; or the server said 429 or 503 and when to come
back. A server that asks for time gets at least that much. Our own waits double, and a random half of each is left off,
so that clients which failed together do not return together.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from bench.errors import AskedWrongly, ClientError, Dropped, Refused, Unreachable

COME_BACK = frozenset({429, 503})


@dataclass(frozen=True)
class Retry:
    """How often a question is sent, and how long it rests in between.

    Attributes:
        attempts: most times it is sent, the first included; 1 never repeats.
        first_s: our own wait after the first attempt, seconds; it doubles with each.
        longest_s: our own waits grow no further, seconds.

    Raises:
        AskedWrongly: less than one attempt, or a negative wait.
    """

    attempts: int = 4
    first_s: float = 0.1
    longest_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not (0 <= self.first_s <= self.longest_s):
            raise AskedWrongly("a retry needs at least one attempt, and 0 <= first_s <= longest_s")

    def wait_s(self, failure: ClientError, attempt: int, left_s: float, jitter: float) -> float | None:
        """Say how long to wait before the next attempt.

        Args:
            failure: of the last attempt.
            attempt: its number, from 1.
            left_s: time left for the whole question, seconds.
            jitter: a random number in [0, 1).

        Returns:
            Seconds, or `None` to give up: it is of no use, it was tried often enough, or the wait would outlast
            `left_s`.
        """
        if attempt >= self.attempts or not worth_repeating(failure):
            return None
        own_s = min(self.first_s * 2.0 ** min(attempt - 1, 64), self.longest_s)
        if isinstance(failure, Refused) and failure.retry_after_s is not None:
            wait_s = failure.retry_after_s + own_s * jitter
        else:
            wait_s = own_s * (1 - jitter / 2)
        return wait_s if wait_s < left_s else None


def worth_repeating(failure: ClientError) -> bool:
    """Whether the same question, sent once more, may be answered."""
    if isinstance(failure, Refused):
        return failure.status in COME_BACK and failure.retry_after_s is not None
    if isinstance(failure, Dropped):
        return failure.silent
    return isinstance(failure, Unreachable) and not failure.lasting


def asked_wait_s(retry_after: str | None, date: str | None, now: float) -> float | None:
    """Read a `Retry-After` header.

    Args:
        retry_after: whole seconds, or an HTTP date.
        date: the `Date` header of the same answer: the server's clock, by which it meant its date.
        now: our own clock, seconds since 1970, where there is no such header.

    Returns:
        Seconds from now, not negative; `None` without a header that can be read.
    """
    text = (retry_after or "").strip()
    if text.isdecimal():
        return float(text)
    until, since = _moment(text), _moment(date or "")
    return None if until is None else max(0.0, until - (now if since is None else since))


def _moment(text: str) -> float | None:
    """An HTTP date, as seconds since 1970."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
