"""How often a client may ask: buckets, on a clock set by hand."""

from __future__ import annotations

import pytest

from server import rate
from server.rate import Buckets
from tests.builders import FakeClock


def test_a_bucket_holds_a_seconds_worth_and_fills_steadily() -> None:
    clock = FakeClock()
    buckets = Buckets(4, clock)
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, pytest.approx(0.25)]
    clock.now = 0.25
    assert [buckets.take("a") for _ in range(2)] == [0, pytest.approx(0.25)]


def test_a_slow_rate_still_lets_one_through() -> None:
    clock = FakeClock()
    buckets = Buckets(0.1, clock)
    assert [buckets.take("a"), buckets.take("a")] == [0, pytest.approx(10)]
    clock.now = 10.0
    assert buckets.take("a") == 0


def test_clients_do_not_share_a_bucket() -> None:
    buckets = Buckets(1, FakeClock())
    assert [buckets.take(client) for client in "aab"] == [0, pytest.approx(1), 0]


def test_over_any_time_no_more_than_the_rate_gets_through() -> None:
    clock = FakeClock()
    buckets = Buckets(7, clock)
    taken = 0
    for step in range(1000):
        clock.now = step / 100
        taken += buckets.take("a") == 0
    assert taken == 7 + 69


def test_clients_that_ask_no_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MOST", 3)
    clock = FakeClock()
    buckets = Buckets(1, clock)
    for number in range(3):
        clock.now = number / 2
        buckets.take(str(number))
    buckets.take("new")
    assert set(buckets._full_at) == {"1", "2", "new"}
