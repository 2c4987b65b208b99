"""Samples that wait: the order they leave in."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from server.waiting import NEVER, Waiting


def test_the_more_urgent_leave_first_and_equals_as_they_came() -> None:
    queue = Waiting()
    for id_, priority in enumerate([2, 3, 2, 1, 3, 1]):
        queue.add(id_, id_ / 10, priority)
    assert (list(queue), len(queue), queue.oldest(), queue.newest) == ([3, 5, 0, 2, 1, 4], 6, 0, 0.5)
    assert (queue.take(3), queue.take(9), queue.take(1)) == ((3, 5, 0), (2, 1, 4), ())
    assert (len(queue), queue.oldest()) == (0, NEVER)


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=30), st.integers(1, 5))
def test_everybody_who_stays_leaves_once_in_order_of_priority(each: list[tuple[int, bool]], size: int) -> None:
    queue = Waiting()
    for id_, (priority, _) in enumerate(each):
        queue.add(id_, id_, priority)
    for id_, (priority, goes) in enumerate(each):
        if goes:
            queue.remove(id_, priority)
    left: list[int] = []
    while queue:
        left += queue.take(size)
    stays = [(priority, id_) for id_, (priority, goes) in enumerate(each) if not goes]
    assert left == [id_ for _, id_ in sorted(stays)]
    assert queue._levels == {}
