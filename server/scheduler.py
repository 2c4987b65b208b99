"""One queue a stage, batches and deadlines: every decision about order, and not one effect.

The scheduler is told the time and never asks for it; it holds identifiers and no tensors. Whoever drives it runs the
batches it hands out and reports back with `advance`. Its promises:

- every sample that was let in leaves exactly once: answered by `advance`, late by `expire`, or by `cancel`;
- a sample that does not stop joins the next stage's queue, where survivors of different requests share a batch;
- a batch is due when it is full or when its oldest sample has waited `max_wait`, whichever is first. That instant is
  computed in one place, when a sample joins a queue, and compared as it was stored: computing it twice, once for
  `wake_at` and once for `next_batch`, lets the two round apart, and a driver then wakes to find nothing to do;
- later stages go first, so that what was begun is finished and its place is given back.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cascade.errors import Overloaded


@dataclass(frozen=True)
class Limits:
    """Bounds of a scheduler.

    Attributes:
        max_samples: samples in the house, waiting or running.
        max_batch: samples in one batch.
        max_wait: seconds a sample waits for company; 0 never waits.
    """

    max_samples: int
    max_batch: int
    max_wait: float


@dataclass(frozen=True)
class Batch:
    """Samples to be run together.

    Attributes:
        stage: the stage to run.
        ids: the samples, in order of arrival at that stage.
    """

    stage: int
    ids: tuple[int, ...]


@dataclass
class _Sample:
    deadline: float
    last: int
    stage: int = 0
    waiting: bool = True


class Scheduler:
    """Decides which samples run next.

    Args:
        stage_count: stages of the cascade.
        limits: bounds.
    """

    def __init__(self, stage_count: int, limits: Limits) -> None:
        self._limits = limits
        self._queues: list[OrderedDict[int, float]] = [OrderedDict() for _ in range(stage_count)]
        self._samples: dict[int, _Sample] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._samples)

    def depths(self) -> list[int]:
        """Samples waiting at each stage."""
        return [len(queue) for queue in self._queues]

    def submit(self, now: float, deadline: float, count: int = 1, last: int | None = None) -> range:
        """Let samples in, all of them or none.

        Args:
            now: seconds on any steady clock.
            deadline: when their answer stops being of use, on the same clock.
            count: how many.
            last: the last stage they may run; default the last there is.

        Returns:
            Their identifiers.

        Raises:
            Overloaded: the house is full.
        """
        if len(self._samples) + count > self._limits.max_samples:
            raise Overloaded(
                f"{len(self._samples)} images are in hand and {count} more would pass the limit of "
                f"{self._limits.max_samples}: try again later"
            )
        final = len(self._queues) - 1
        ids = range(self._next_id, self._next_id + count)
        self._next_id += count
        for id_ in ids:
            self._samples[id_] = _Sample(deadline, final if last is None else min(last, final))
            heapq.heappush(self._deadlines, (deadline, id_))
            self._join(id_, 0, now)
        return ids

    def cancel(self, ids: Iterable[int]) -> None:
        """Let samples go unanswered; those that have left already are passed over."""
        for id_ in ids:
            sample = self._samples.pop(id_, None)
            if sample is not None and sample.waiting:
                del self._queues[sample.stage][id_]

    def next_batch(self, now: float) -> Batch | None:
        """Take the next batch that is due, if one is."""
        for stage in reversed(range(len(self._queues))):
            due = self._due(stage)
            if due is not None and now >= due:
                queue = self._queues[stage]
                ids = tuple(queue.popitem(last=False)[0] for _ in range(min(len(queue), self._limits.max_batch)))
                for id_ in ids:
                    self._samples[id_].waiting = False
                return Batch(stage, ids)
        return None

    def advance(self, batch: Batch, exits: Sequence[bool], now: float) -> tuple[int, ...]:
        """Take back a batch that was run.

        Args:
            batch: as `next_batch` gave it.
            exits: for each of its samples, whether the exit rule stops it here.
            now: seconds.

        Returns:
            The samples that leave with an answer: those that stop, and those at their last stage. The others wait for
            the next stage. Samples that were cancelled or expired meanwhile are neither.
        """
        done = []
        for id_, stops in zip(batch.ids, exits, strict=True):
            sample = self._samples.get(id_)
            if sample is None:
                continue
            if stops or batch.stage >= sample.last:
                del self._samples[id_]
                done.append(id_)
            else:
                self._join(id_, batch.stage + 1, now)
        return tuple(done)

    def expire(self, now: float) -> tuple[int, ...]:
        """Let every sample go whose deadline has come, waiting or running, and say which."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            id_ = heapq.heappop(self._deadlines)[1]
            if id_ in self._samples:
                late.append(id_)
        self.cancel(late)
        return tuple(late)

    def wake_at(self, can_run: bool = True) -> float | None:
        """When `next_batch` or `expire` will next have something to give, or None if they never will.

        An instant in the past means now.

        Args:
            can_run: whether a batch could be started; if not, only deadlines count.
        """
        while self._deadlines and self._deadlines[0][1] not in self._samples:
            heapq.heappop(self._deadlines)
        times = [deadline for deadline, _ in self._deadlines[:1]]
        if can_run:
            times += [due for stage in range(len(self._queues)) if (due := self._due(stage)) is not None]
        return min(times, default=None)

    def _join(self, id_: int, stage: int, now: float) -> None:
        sample = self._samples[id_]
        sample.stage, sample.waiting = stage, True
        self._queues[stage][id_] = now + self._limits.max_wait

    def _due(self, stage: int) -> float | None:
        queue = self._queues[stage]
        if not queue:
            return None
        return float("-inf") if len(queue) >= self._limits.max_batch else next(iter(queue.values()))
