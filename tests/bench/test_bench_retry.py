"""When a question is asked again, as a table: no clock, no socket, no wait."""

from __future__ import annotations

import math

import pytest

from bench.errors import AskedWrongly, BadAnswer, ClientError, Closed, Dropped, Refused, TimedOut, Unreachable
from bench.retry import Retry, asked_wait_s, worth_repeating

REFUSED = Unreachable("nobody listens there")
NOON = "Tue, 20 Oct 2026 12:00:00 GMT"
NOON_S = 1792497600.0


def busy(retry_after_s: float | None, status: int = 503) -> Refused:
    return Refused(status, "overloaded", "try later", None, retry_after_s)


@pytest.mark.parametrize(
    ("failure", "repeated"),
    [
        (REFUSED, True),
        (Unreachable("no such name", lasting=True), False),
        (Dropped("at once", silent=True), True),
        (Dropped("halfway through the answer"), False),
        (busy(1.0), True),
        (busy(0.0, status=429), True),
        (busy(None), False),
        (busy(1.0, status=500), False),
        (TimedOut("too late"), False),
        (BadAnswer("<html>"), False),
        (Closed("by its owner"), False),
    ],
    ids=str,
)
def test_only_what_is_safe_and_of_use_is_repeated(failure: ClientError, repeated: bool) -> None:
    assert worth_repeating(failure) is repeated
    assert (Retry().wait_s(failure, 1, 60.0, 0.5) is not None) is repeated


def test_our_own_waits_double_up_to_a_limit() -> None:
    retry = Retry(attempts=9, first_s=0.1, longest_s=0.5)
    waits = [retry.wait_s(REFUSED, attempt, 60.0, jitter=0.0) for attempt in range(1, 6)]
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_chance_leaves_off_up_to_half_of_our_own_wait() -> None:
    waits = [Retry(first_s=1.0).wait_s(REFUSED, 1, 60.0, jitter) for jitter in (0.0, 0.5, 1.0)]
    assert waits == [1.0, 0.75, 0.5]


@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.999])
def test_a_server_that_asks_for_time_gets_at_least_that(jitter: float) -> None:
    wait_s = Retry(first_s=0.1).wait_s(busy(7.0), 1, 60.0, jitter)
    assert wait_s is not None
    assert 7.0 <= wait_s <= 7.1


def test_the_last_attempt_is_the_last() -> None:
    retry = Retry(attempts=3)
    assert [retry.wait_s(REFUSED, attempt, 60.0, 0.0) is None for attempt in (1, 2, 3, 4)] == [False, False, True, True]
    assert Retry(attempts=1).wait_s(REFUSED, 1, 60.0, 0.0) is None


def test_a_wait_that_would_outlast_the_question_is_not_begun() -> None:
    assert Retry().wait_s(busy(7.0), 1, left_s=7.0, jitter=0.0) is None
    assert Retry().wait_s(busy(7.0), 1, left_s=7.1, jitter=0.0) == 7.0
    assert Retry().wait_s(busy(math.inf), 1, left_s=60.0, jitter=0.0) is None


def test_an_attempt_far_out_does_not_overflow() -> None:
    assert Retry(attempts=10_000).wait_s(REFUSED, 9_000, 60.0, 0.0) == 5.0


@pytest.mark.parametrize("given", [{"attempts": 0}, {"first_s": -1.0}, {"first_s": 2.0, "longest_s": 1.0}])
def test_a_retry_that_makes_no_sense_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(AskedWrongly):
        Retry(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Tue, 20 Oct 2026 12:00:30 GMT", 30.0),
        ("Tuesday, 20-Oct-26 12:00:30 GMT", 30.0),
        ("Tue Oct 20 12:00:30 2026", 30.0),
        ("Tue, 20 Oct 2026 11:00:00 GMT", 0.0),
        ("9" * 400, math.inf),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("Tue, 99 Oct 2026 12:00:00 GMT", None),
        ("Tue, 20 Oct 99999999999 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert asked_wait_s(header, None, NOON_S) == seconds


def test_a_date_is_meant_by_the_clock_of_the_server_that_gave_it() -> None:
    assert asked_wait_s("Tue, 20 Oct 2026 12:00:05 GMT", NOON, now=0.0) == 5.0
    assert asked_wait_s("Tue, 20 Oct 2026 12:00:05 GMT", "whenever", now=NOON_S) == 5.0
