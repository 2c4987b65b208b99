"""The scheduler's promises, one test each."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.errors import DeadlineExceeded, Overloaded
from server.costs import Costs
from server.scheduler import Batch, Departure, Limits, Scheduler

FOREVER = float("inf")


FLAT = Costs((1, 4), ((1.0, 1.0), (1.0, 1.0)))
"""A second a run, whatever its size: one more sample in a batch saves a second."""


def scheduler(
    stages: int = 2, samples: int = 100, batch: int = 4, wait: float = 0.0, costs: Costs | None = None
) -> Scheduler:
    return Scheduler(stages, Limits(samples, batch, wait), costs)


def eager(wait: float = 10, batch: int = 4, costs: Costs = FLAT) -> Scheduler:
    """One in which a sample comes every tenth of a second, and the last of them at 0."""
    queue = scheduler(batch=batch, wait=wait, costs=costs)
    for tenth in range(-20, 1):
        queue.submit(tenth / 10, FOREVER)
        if tenth:
            queue.cancel(range(queue._next_id))
    return queue


def test_a_full_batch_does_not_wait() -> None:
    queue = eager(batch=3)
    queue.submit(0, FOREVER, 2)
    assert queue.next_batch(0) == Batch(0, (20, 21, 22), "full")


def test_a_sample_that_expects_company_waits_as_long_as_company_would_save() -> None:
    queue = eager()
    wake_at = queue.wake_at()
    assert wake_at == 1.0
    assert queue.next_batch(np.nextafter(wake_at, 0)) is None
    assert queue.next_batch(wake_at) == Batch(0, (20,), "idle")


def test_no_sample_waits_longer_than_it_may() -> None:
    queue = eager(wait=0.25)
    queue.submit(0.2, FOREVER)
    assert queue.next_batch(0.24) is None
    assert queue.next_batch(0.25) == Batch(0, (20, 21), "timeout")


def test_no_sample_waits_past_the_last_start_that_meets_its_deadline() -> None:
    queue = eager(costs=Costs((1, 4), ((1.0, 1.0), (0.1, 0.1))))
    queue.submit(0, 2.5)
    assert queue.next_batch(0.49) is None
    assert queue.next_batch(0.5) == Batch(0, (20, 21), "deadline")


def test_nobody_waits_where_a_larger_batch_saves_nothing() -> None:
    queue = scheduler(wait=10, costs=Costs((1,), ((1.0,), (1.0,))))
    for second in range(3):
        queue.submit(second / 10, FOREVER)
    assert queue.next_batch(0.2) == Batch(0, (0, 1, 2), "idle")


def test_nobody_waits_for_those_who_come_too_seldom_to_save_anything() -> None:
    queue = scheduler(wait=10, costs=FLAT)
    for second in (0, 0.99, 1.98):
        queue.submit(second, FOREVER)
    assert queue.next_batch(1.98) is None
    queue.submit(9, FOREVER)
    assert queue.next_batch(9) == Batch(0, (0, 1, 2, 3), "full")
    queue.submit(20, FOREVER)
    assert queue.next_batch(20) == Batch(0, (4,), "idle")


def test_without_max_wait_a_lone_sample_runs_at_once() -> None:
    queue = scheduler(wait=0)
    queue.submit(5, FOREVER)
    assert queue.next_batch(5) == Batch(0, (0,))


def test_a_batch_holds_no_more_than_max_batch_and_keeps_the_order_of_arrival() -> None:
    queue = scheduler(batch=4)
    queue.submit(0, FOREVER, 6)
    assert [queue.next_batch(0), queue.next_batch(0), queue.next_batch(0)] == [
        Batch(0, (0, 1, 2, 3), "full"),
        Batch(0, (4, 5)),
        None,
    ]


def test_survivors_of_two_requests_share_the_next_stages_batch() -> None:
    queue = scheduler()
    queue.submit(0, FOREVER, 2)
    queue.submit(0.5, FOREVER, 2)
    batch = queue.next_batch(1)
    assert batch is not None
    assert queue.advance(batch, [True, False, False, True], 1.1) == (0, 3)
    assert queue.next_batch(1.1) == Batch(1, (1, 2))


def test_later_stages_go_first() -> None:
    queue = scheduler(batch=1)
    queue.submit(0, FOREVER, 2)
    begun = queue.next_batch(0)
    assert begun is not None
    queue.advance(begun, [False], 0)
    assert queue.next_batch(0) == Batch(1, (0,), "full")


def test_the_last_stage_answers_whatever_the_exit_rule_says() -> None:
    queue = scheduler(stages=1)
    queue.submit(0, FOREVER)
    assert queue.advance(Batch(0, (0,)), [False], 0) == (0,) if queue.next_batch(0) else False


def test_a_sample_never_passes_its_own_last_stage() -> None:
    queue = scheduler(stages=3)
    queue.submit(0, FOREVER, 1, last=0)
    queue.submit(0, FOREVER, 1, last=99)
    batch = queue.next_batch(0)
    assert batch is not None
    assert queue.advance(batch, [False, False], 0) == (0,)


def test_a_full_house_answers_at_once_and_lets_nobody_in_halfway() -> None:
    queue = scheduler(samples=3)
    queue.submit(0, FOREVER, 2)
    with pytest.raises(Overloaded, match="limit of 3"):
        queue.submit(0, FOREVER, 2)
    assert len(queue) == 2
    assert queue.submit(0, FOREVER, 1) == range(2, 3)


def test_a_cancelled_sample_frees_its_place_and_never_runs() -> None:
    queue = scheduler(samples=2)
    queue.submit(0, FOREVER, 2)
    queue.cancel([0])
    queue.submit(0, FOREVER, 1)
    assert queue.next_batch(0) == Batch(0, (1, 2))


def test_a_sample_cancelled_while_it_runs_does_not_harm_its_batch() -> None:
    queue = scheduler()
    queue.submit(0, FOREVER, 3)
    batch = queue.next_batch(0)
    assert batch is not None
    queue.cancel([0, 1, 77])
    assert queue.advance(batch, [True, False, True], 0) == (2,)
    assert len(queue) == 0


def test_late_samples_leave_whether_they_wait_or_run() -> None:
    queue = scheduler(batch=1)
    queue.submit(0, 5.0, 2)
    queue.submit(0, 9.0)
    running = queue.next_batch(0)
    assert queue.expire(4.9) == ()
    assert queue.expire(5.0) == (Departure(0, False), Departure(1, False))
    assert running is not None
    assert queue.advance(running, [True], 6) == ()
    assert queue.depths() == [1, 0]


@pytest.mark.parametrize("may_truncate", [False, True])
def test_a_sample_that_its_next_stage_would_make_late_leaves_before_it(may_truncate: bool) -> None:
    queue = scheduler(costs=FLAT)
    queue.submit(0, 2.5, may_truncate=may_truncate)
    batch = queue.next_batch(0)
    assert batch is not None
    assert queue.advance(batch, [False], 1.6) == ()
    assert queue.expire(1.6) == (Departure(0, may_truncate),)
    assert len(queue) == 0


def test_before_stage_0_there_is_nothing_to_truncate_to() -> None:
    queue = scheduler(costs=FLAT)
    queue.submit(0, 1.5, may_truncate=True)
    assert queue.expire(0.4) == ()
    assert queue.expire(0.5) == (Departure(0, False),)


def test_a_sample_that_the_queue_would_make_late_is_not_let_in_and_told_how_long_the_queue_is() -> None:
    queue = scheduler(batch=1, costs=Costs((1,), ((1.0,), (2.0,))))
    queue.submit(0, FOREVER, 2)
    with pytest.raises(Overloaded, match=r"take 6\.000 s") as refused:
        queue.submit(0, 13.4)
    assert refused.value.retry_after_s == 6
    assert len(queue.submit(0, 13.6)) == 1  # nine seconds for all three, and half of that to spare


def test_what_takes_longer_than_the_table_says_is_expected_to_go_on_so() -> None:
    queue = scheduler(stages=1, batch=1, costs=Costs((1,), ((1.0,),)))
    queue.submit(0, FOREVER, 20)
    for now in range(0, 24, 2):  # each run takes one second, and what is done around it another
        batch = queue.next_batch(now)
        assert batch is not None
        queue.advance(batch, [True], now + 1)
    assert queue.backlog() == pytest.approx(2 * 8, rel=0.1)
    queue.cancel(range(20))
    assert queue.next_batch(99) is None
    queue.submit(999, FOREVER, 8)
    queue.next_batch(999)
    assert queue.backlog() == pytest.approx(2 * 8, rel=0.1)  # a pause says nothing of the pace


def test_ends_of_samples_that_have_left_are_not_kept() -> None:
    queue = scheduler(stages=1, costs=Costs((1,), ((0.001,),)))
    for number in range(1000):
        queue.submit(number, number + 1e6)
        batch = queue.next_batch(number)
        assert batch is not None
        queue.advance(batch, [True], number)
    assert len(queue._ends) < 100


def test_what_runs_counts_as_part_of_the_queue_until_it_is_reported() -> None:
    queue = scheduler(stages=1, costs=Costs((1,), ((1.0,),)))
    queue.submit(0, FOREVER, 2)
    batch = queue.next_batch(0)
    assert batch is not None
    assert queue.backlog() == 2
    queue.give_up(batch)
    assert queue.backlog() == 0


def test_the_queue_is_shorter_where_most_samples_stop_early() -> None:
    queue = scheduler(batch=1, costs=Costs((1,), ((1.0,), (1.0,))))
    for _ in range(30):
        queue.submit(0, FOREVER)
        batch = queue.next_batch(0)
        assert batch is not None
        queue.advance(batch, [True], 0)
    queue.submit(0, FOREVER, 10)
    assert queue.backlog() == 11


def test_a_deadline_that_no_queue_could_meet_is_no_overload() -> None:
    with pytest.raises(DeadlineExceeded, match=r"stage 0 alone takes 1\.000 s over 2 images"):
        scheduler(costs=FLAT).submit(0, 0.9, 2)


def test_it_wakes_for_a_deadline_and_forgets_the_deadlines_of_those_who_left() -> None:
    queue = scheduler()
    queue.submit(0, 3.0)
    queue.submit(0, 8.0)
    assert queue.wake_at(can_run=False) == 3.0
    queue.cancel([0])
    assert queue.wake_at(can_run=False) == 8.0
    queue.cancel([1])
    assert queue.wake_at() is None


def test_while_nothing_can_be_started_only_deadlines_wake_it() -> None:
    queue = eager()
    queue.submit(0, 50.0)
    assert queue.wake_at(can_run=False) == 49.0
    assert queue.wake_at() == 1.0


def test_a_full_batch_is_due_in_the_past() -> None:
    queue = eager(batch=2)
    queue.submit(0, FOREVER)
    assert queue.wake_at() == float("-inf")


def test_a_report_of_the_wrong_length_is_refused() -> None:
    queue = scheduler()
    queue.submit(0, FOREVER, 2)
    batch = queue.next_batch(0)
    assert batch is not None
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        queue.advance(batch, [True], 0)


def test_the_urgent_run_first_at_every_stage_and_let_nobody_in_for_whom_there_is_no_room() -> None:
    queue = scheduler(batch=2, samples=4)
    for priority in (2, 3, 1, 1):
        queue.submit(0, FOREVER, priority=priority)
    with pytest.raises(Overloaded):
        queue.submit(0, FOREVER, priority=1)
    queue.cancel([3])
    urgent = queue.next_batch(0)
    assert urgent is not None
    assert urgent.ids == (2, 0)
    queue.advance(urgent, [False, False], 1)
    later = queue.next_batch(1)
    assert later is not None
    assert (later.stage, later.ids) == (1, (2, 0))
