"""One queue a stage, batches and deadlines: every decision about order, and not one effect.

The scheduler is told the time and never asks for it; it holds identifiers and no tensors. Whoever drives it runs the
batches it hands out and reports back with `advance`. Its promises:

- every sample that was let in leaves exactly once: answered by `advance`, let go by `expire`, or by `cancel`;
- a sample that does not stop joins the next stage's queue, where survivors of different requests share a batch;
- a batch waits for company only while that repays: the time that one more sample saves by sharing a run, according to
  the table of costs, must exceed the time until the next one is expected, according to the gaps between the last ones;
  and no longer than `max_wait`, nor past the last moment at which its most urgent sample can still be answered in time;
- when a batch is due is computed in one place, when a queue changes, and compared as it was stored: computing it twice,
  once for `wake_at` and once for `next_batch`, lets the two round apart, and a driver then wakes to find nothing to do;
- a sample whose deadline its next stage would miss does not run that stage: it leaves at once, with its best answer so
  far if its caller takes one;
- at every stage the more urgent go first, and among equals those that came first;
- later stages go first, so that what was begun is finished and its place is given back.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cascade.errors import DeadlineExceeded, Overloaded
from server.costs import Costs
from server.waiting import ORDINARY, Waiting

Reason = Literal["full", "idle", "timeout", "deadline"]
REASONS: tuple[Reason, ...] = ("full", "idle", "timeout", "deadline")

ALWAYS = float("-inf")
NEVER = float("inf")
NEWS = 0.2  # weight of the newest gap or exit in the running means
LONGEST = 10.0  # a batch that takes longer, in multiples of what was expected, was held up by something else
SPARE = 1.5  # a queue is let grow to two thirds of what a deadline allows, since the pace varies
QUIET_S = 1.0  # after a gap as long as this, what was known about arrivals says nothing any more


@dataclass(frozen=True)
class Limits:
    """Bounds of a scheduler.

    Attributes:
        max_samples: samples in the house, waiting or running.
        max_batch: samples in one batch.
        max_wait: longest that a sample waits for company, seconds; 0 never waits.
    """

    max_samples: int
    max_batch: int
    max_wait: float


class Batch(NamedTuple):
    """Samples to be run together.

    Attributes:
        stage: the stage to run.
        ids: the samples, the more urgent first, and equals in order of arrival at that stage.
        reason: why now: the batch is full; nothing repays waiting; it waited as long as it may; a deadline presses.
    """

    stage: int
    ids: tuple[int, ...]
    reason: Reason = "idle"


class Departure(NamedTuple):
    """A sample that `expire` let go.

    Attributes:
        id: the sample.
        truncated: whether it leaves with the answer of the stages it has run, or with none.
    """

    id: int
    truncated: bool


@dataclass(slots=True)
class _Sample:
    deadline: float
    last: int
    may_truncate: bool
    priority: int
    stage: int = 0
    waiting: bool = True


@dataclass(slots=True)
class _Queue:
    """Samples that wait at a stage, and when they are due."""

    joined: Waiting = field(default_factory=Waiting)
    newest: float = ALWAYS
    gap: float = NEVER
    due: float = ALWAYS
    reason: Reason = "idle"
    goes_on: float = 1.0


@dataclass
class _Pace:
    """How much longer a batch takes than the table says, with all that is done between it and the next one.

    Decoding, writing answers and refusing are in no table. Where they share a core with the networks they can take as
    long again, and a deadline that was promised by the table alone would be missed.

    Attributes:
        ratio: running mean of what it took to what the table says; at least 1.
        began: when the last batch did, if others have waited since.
        expected: seconds that the table gives it.
    """

    ratio: float = 1.0
    began: float = NEVER
    expected: float = 0.0

    def start(self, now: float, expected: float) -> None:
        """A batch begins."""
        if self.began < NEVER and self.expected:
            ratio = min(max((now - self.began) / self.expected, 1.0), LONGEST)
            self.ratio += NEWS * (ratio - self.ratio)
        self.began, self.expected = now, expected

    def rest(self) -> None:
        """Nothing is to be run."""
        self.began = NEVER


class Scheduler:
    """Decides which samples run next.

    Args:
        stage_count: stages of the cascade.
        limits: bounds.
        costs: what runs take; default nothing, so that no batch ever waits.
    """

    def __init__(self, stage_count: int, limits: Limits, costs: Costs | None = None) -> None:
        self._limits = limits
        self._costs = costs or Costs.unknown(stage_count)
        self._queues = [_Queue() for _ in range(stage_count)]
        self._samples: dict[int, _Sample] = {}
        self._ends: list[tuple[float, int, int]] = []  # when, sample, the stage it would miss or -1 for its deadline
        self._running = [0] * stage_count
        self._pace = _Pace()
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._samples)

    def depths(self) -> list[int]:
        """Samples waiting at each stage."""
        return [len(queue.joined) for queue in self._queues]

    def backlog(self, more: int = 0) -> float:
        """Seconds until all that is in the house now, and `more`, will have left: by the table, the pace, the exits."""
        present = [len(queue.joined) + running for queue, running in zip(self._queues, self._running, strict=True)]
        present[0] += more
        return self._pace.ratio * self._costs.backlog(present, [queue.goes_on for queue in self._queues])

    def submit(
        self,
        now: float,
        deadline: float,
        count: int = 1,
        last: int | None = None,
        may_truncate: bool = False,
        priority: int = ORDINARY,
    ) -> range:
        """Let samples in, all of them or none.

        Args:
            now: seconds on any steady clock.
            deadline: when their answer stops being of use, on the same clock.
            count: how many.
            last: the last stage they may run; default the last there is.
            may_truncate: whether an answer of fewer stages is better than none.
            priority: the lower runs first; it lets nobody in for whom there is no room.

        Returns:
            Their identifiers.

        Raises:
            Overloaded: the house is full, or what is in it takes until after the deadline.
            DeadlineExceeded: the deadline could not be met in an empty house.
        """
        self.check_room(now, deadline, count)
        final = len(self._queues) - 1
        ids = range(self._next_id, self._next_id + count)
        self._next_id += count
        for id_ in ids:
            sample = _Sample(deadline, final if last is None else min(last, final), may_truncate, priority)
            self._samples[id_] = sample
            self._join(id_, sample, now)
            if deadline < NEVER:
                self._note_end(deadline, id_, -1)
        self._changed(0, now)
        return ids

    def check_room(self, now: float, deadline: float, count: int = 1) -> None:
        """Refuse what could not be let in; asked before an image is decoded, it saves the decoding.

        Raises:
            Overloaded: the house is full, or what is in it takes until after the deadline.
            DeadlineExceeded: the deadline could not be met in an empty house.
        """
        if len(self._samples) + count > self._limits.max_samples:
            raise Overloaded(
                f"{len(self._samples)} images are in hand and {count} more would pass the limit of "
                f"{self._limits.max_samples}: try again later",
                retry_after_s=self.backlog(),
            )
        if deadline >= now + (len(self._samples) + count + 1) * self._costs.most * self._pace.ratio * SPARE:
            return  # however it comes, there is time for all
        if now + (least := self._costs.run(0, count)) > deadline:
            raise DeadlineExceeded(
                f"stage 0 alone takes {least:.3f} s over {count} images, past this request's deadline: allow more time"
            )
        if self._samples and now + SPARE * self.backlog(count) > deadline:
            queued = self.backlog()
            raise Overloaded(
                f"the images in hand take {queued:.3f} s, past this request's deadline: try again later",
                retry_after_s=queued,
            )

    def cancel(self, ids: Iterable[int]) -> int:
        """Let samples go unanswered; those that have left already are passed over.

        Returns:
            How many went.
        """
        count = 0
        for id_ in ids:
            sample = self._samples.pop(id_, None)
            if sample is not None:
                count += 1
                if sample.waiting:
                    self._queues[sample.stage].joined.remove(id_, sample.priority)
        return count

    def next_batch(self, now: float) -> Batch | None:
        """Take the next batch that is due, if one is."""
        for stage in reversed(range(len(self._queues))):
            queue = self._queues[stage]
            if queue.joined and now >= queue.due:
                reason = queue.reason
                ids = queue.joined.take(self._limits.max_batch)
                for id_ in ids:
                    self._samples[id_].waiting = False
                self._running[stage] += len(ids)
                self._set_due(stage)
                self._pace.start(now, self._costs.run(stage, len(ids)))
                return Batch(stage, ids, reason)
        self._pace.rest()
        return None

    def advance(self, batch: Batch, exits: Sequence[bool], now: float) -> tuple[int, ...]:
        """Take back a batch that was run.

        Args:
            batch: as `next_batch` gave it.
            exits: for each of its samples, whether the exit rule stops it here.
            now: seconds.

        Returns:
            The samples that leave with an answer: those that stop, and those at their last stage. The others wait for
            the next stage. Samples that were cancelled or let go meanwhile are neither.
        """
        self._running[batch.stage] -= len(batch.ids)
        done = []
        for id_, stops in zip(batch.ids, exits, strict=True):
            sample = self._samples.get(id_)
            if sample is None:
                continue
            if stops or batch.stage >= sample.last:
                del self._samples[id_]
                done.append(id_)
            else:
                sample.stage = batch.stage + 1
                self._join(id_, sample, now)
        queue = self._queues[batch.stage]
        queue.goes_on += NEWS * (1 - sum(exits) / max(1, len(exits)) - queue.goes_on)
        if batch.stage + 1 < len(self._queues):
            self._changed(batch.stage + 1, now)
        if not self._samples:
            self._pace.rest()
        return tuple(done)

    def give_up(self, batch: Batch) -> None:
        """Take back a batch whose run failed; its samples stay until they are cancelled."""
        self._running[batch.stage] -= len(batch.ids)

    def expire(self, now: float) -> tuple[Departure, ...]:
        """Let every sample go whose deadline has come, or could not be met by the stage it waits for; say which."""
        gone = []
        while self._ends and self._ends[0][0] <= now:
            _, id_, stage = heapq.heappop(self._ends)
            if self._counts(id_, stage):
                sample = self._samples[id_]
                gone.append(Departure(id_, sample.may_truncate and sample.stage > 0))
                self.cancel((id_,))
        return tuple(gone)

    def wake_at(self, can_run: bool = True) -> float | None:
        """When `next_batch` or `expire` will next have something to give, or None if they never will.

        An instant in the past means now.

        Args:
            can_run: whether a batch could be started; if not, only deadlines count.
        """
        ends = self._ends
        while ends and not self._counts(ends[0][1], ends[0][2]):
            heapq.heappop(ends)
        wake_at = ends[0][0] if ends else NEVER
        if can_run:
            for queue in self._queues:
                if queue.joined and queue.due < wake_at:
                    wake_at = queue.due
        return wake_at if wake_at < NEVER else None

    def _counts(self, id_: int, stage: int) -> bool:
        """Whether an entry of `_ends` still means something: the sample is here, and before the stage it names."""
        sample = self._samples.get(id_)
        return sample is not None and (stage < 0 or (sample.waiting and sample.stage == stage))

    def _join(self, id_: int, sample: _Sample, now: float) -> None:
        sample.waiting = True
        self._queues[sample.stage].joined.add(id_, now, sample.priority)
        if sample.deadline < NEVER and (cost := self._costs.run(sample.stage, 1)):
            self._note_end(sample.deadline - cost, id_, sample.stage)

    def _note_end(self, when: float, id_: int, stage: int) -> None:
        """Put an entry into `_ends`, and those out that mean nothing any more once they are most of it."""
        ends = self._ends
        heapq.heappush(ends, (when, id_, stage))
        if len(ends) > 64 + 4 * len(self._samples):
            ends[:] = [end for end in ends if self._counts(end[1], end[2])]
            heapq.heapify(ends)

    def _changed(self, stage: int, now: float) -> None:
        """Note an arrival of one or many samples at a stage, and when they are due."""
        queue = self._queues[stage]
        if not queue.joined or queue.joined.newest != now:
            return
        gap = now - queue.newest
        queue.gap = gap if max(gap, queue.gap) > QUIET_S else queue.gap + NEWS * (gap - queue.gap)
        queue.newest = now
        self._set_due(stage)

    def _set_due(self, stage: int) -> None:
        queue = self._queues[stage]
        count = len(queue.joined)
        if not count:
            return
        if count >= self._limits.max_batch:
            queue.due, queue.reason = ALWAYS, "full"
            return
        if not self._limits.max_wait or queue.gap >= (saving := self._costs.saving(stage, count)):
            queue.due, queue.reason = ALWAYS, "idle"
            return
        oldest = queue.joined.oldest() + self._limits.max_wait
        urgent = self._last_start(stage)
        dues: tuple[tuple[float, Reason], ...] = (
            (queue.newest + saving, "idle"),
            (oldest, "timeout"),
            (urgent, "deadline"),
        )
        queue.due, queue.reason = min(dues)

    def _last_start(self, stage: int) -> float:
        """The last moment at which a run of all that wait here still ends before the first of their deadlines."""
        queue = self._queues[stage]
        first = min(self._samples[id_].deadline for id_ in queue.joined)
        return first - 2 * self._costs.run(stage, len(queue.joined))
