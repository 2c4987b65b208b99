"""All the scheduler's promises at once, under Hypothesis: whatever a driver does, and whatever the exits are."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cascade.combine import first, join
from cascade.errors import DeadlineExceeded, Overloaded
from cascade.exits import exits as rule_exits
from cascade.replay import replay
from server.costs import Costs
from server.scheduler import Batch, Limits, Scheduler

FOREVER = float("inf")


class House(RuleBasedStateMachine):
    """Everything a driver may do, in any order; whoever was let in must be seen to leave once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.entered: set[int] = set()
        self.left: list[int] = []
        self.running: list[Batch] = []

    @initialize(
        stages=st.integers(1, 3),
        batch=st.integers(1, 5),
        wait=st.sampled_from([0.0, 0.1, 0.7]),
        cost=st.sampled_from([0.0, 0.05, 0.3]),
        growth=st.floats(1, 4),
    )
    def open(self, stages: int, batch: int, wait: float, cost: float, growth: float) -> None:
        self.max_batch = batch
        self.queue = Scheduler(stages, Limits(20, batch, wait), Costs((1, 4), ((cost, cost * growth),) * stages))

    @rule(count=st.integers(1, 6), patience=st.floats(0, 3), last=st.none() | st.integers(0, 3), truncate=st.booleans())
    def submit(self, count: int, patience: float, last: int | None, truncate: bool) -> None:
        if len(self.queue) + count > 20:
            with pytest.raises(Overloaded):
                self.queue.submit(self.now, FOREVER, count)
            return
        with contextlib.suppress(Overloaded, DeadlineExceeded):
            self.entered.update(self.queue.submit(self.now, self.now + patience, count, last, truncate))

    @rule()
    def run(self) -> None:
        batch = self.queue.next_batch(self.now)
        if batch is not None:
            assert 0 < len(batch.ids) <= self.max_batch
            self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        stops = data.draw(st.lists(st.booleans(), min_size=len(batch.ids), max_size=len(batch.ids)))
        self.left.extend(self.queue.advance(batch, stops, self.now))

    @precondition(lambda self: self.entered - set(self.left))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.entered - set(self.left))))
        self.queue.cancel([id_, *self.left])
        self.left.append(id_)

    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wake(self) -> None:
        wake_at = self.queue.wake_at()
        if wake_at is not None:
            self.now = max(self.now, wake_at)
            late = [departure.id for departure in self.queue.expire(self.now)]
            batch = self.queue.next_batch(self.now)
            assert late or batch, "it woke for nothing"
            self.left.extend(late)
            self.running.extend([batch] if batch else [])

    @invariant()
    def the_house_holds_those_who_entered_and_have_not_left(self) -> None:
        assert len(self.left) == len(set(self.left))
        assert len(getattr(self, "queue", ())) == len(self.entered) - len(self.left)

    def teardown(self) -> None:
        while len(getattr(self, "queue", ())):
            self.wake()
            for batch in self.running:
                self.left.extend(self.queue.advance(batch, [False] * len(batch.ids), self.now))
            self.running.clear()
        assert sorted(self.left) == sorted(self.entered)


TestEverySampleLeavesExactlyOnce = House.TestCase
TestEverySampleLeavesExactlyOnce.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from(["summed", "accumulated"]),
    st.floats(0, 1.2),
    st.data(),
)
def test_the_answers_are_those_of_replay(
    seed: int, stages: int, count: int, max_batch: int, definition: str, threshold: float, data: st.DataObject
) -> None:
    logits = np.random.default_rng(seed).normal(size=(stages, count, 5)).astype(np.float32) * 2
    wanted = replay(list(logits), threshold, definition)  # type: ignore[arg-type]
    queue = Scheduler(stages, Limits(100, max_batch, 0))
    cut = data.draw(st.integers(0, count))
    found: dict[int, tuple[int, float]] = {}
    state: dict[int, tuple[np.ndarray, float]] = {}
    queue.submit(0, FOREVER, cut)
    arrivals = [count - cut]
    while len(queue) or arrivals:
        if arrivals and (not len(queue) or data.draw(st.booleans())):
            queue.submit(0, FOREVER, arrivals.pop())
        batch = queue.next_batch(0)
        if batch is None:
            continue
        ids = list(batch.ids)
        if batch.stage == 0:
            total, energies, _ = first(logits[0, ids])
        else:
            before = np.stack([state[id_][0] for id_ in ids]), np.asarray([state[id_][1] for id_ in ids])
            total, energies, _ = join(*before, logits[batch.stage, ids], definition)  # type: ignore[arg-type]
        state.update({id_: (total[row], float(energies[row])) for row, id_ in enumerate(ids)})
        for id_ in queue.advance(batch, rule_exits(energies, threshold).tolist(), 0):
            found[id_] = batch.stage, state[id_][1]
    assert [found[id_] for id_ in range(count)] == list(
        zip(wanted.stages.tolist(), wanted.energies.tolist(), strict=True)
    )
