"""Work in batches: how far ahead it goes, in which order it comes back, and what happens to what nobody takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.batches import batches, in_flight
from bench.errors import AskedWrongly


class Work:
    def __init__(self, item: int) -> None:
        self.item, self.cancelled = item, False

    def cancel(self) -> None:
        self.cancelled = True


def test_batches_keep_the_order_and_the_last_may_be_short() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


def test_a_batch_is_read_when_it_is_asked_for() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(9):
            read.append(item)
            yield item

    next(batches(items(), 3))
    assert read == [0, 1, 2]


@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_work_comes_back_in_order_and_never_more_than_the_width_is_ahead(width: int) -> None:
    begun: list[Work] = []

    def start(item: int) -> Work:
        begun.append(Work(item))
        return begun[-1]

    taken: list[Work] = []
    for work in in_flight(range(5), start, width):
        assert len(begun) - len(taken) <= width
        taken.append(work)
    assert taken == begun
    assert not any(work.cancelled for work in begun)


def test_what_nobody_takes_is_cancelled() -> None:
    begun: list[Work] = []
    work = in_flight(range(9), lambda item: begun.append(Work(item)) or begun[-1], 3)  # type: ignore[func-returns-value]
    next(work)
    work.close()
    assert [work.cancelled for work in begun] == [False, True, True]


def test_less_than_one_at_a_time_is_refused() -> None:
    with pytest.raises(AskedWrongly, match="batch_size"):
        next(batches([1], 0))
    with pytest.raises(AskedWrongly, match="concurrency"):
        next(in_flight([1], Work, 0))
