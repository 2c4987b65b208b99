"""What a run of a network takes, by stage and batch size: measured at warm-up, and asked before every decision.

A pure table. Whether a batch should wait for company, whether a deadline can still be met and how long the queue is are
all answered from it, so that nothing about a machine has to be guessed or set by hand.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Costs:
    """Seconds a run takes.

    Attributes:
        sizes: batch sizes that were measured, ascending; a batch is padded to the next one, and one larger than the
            last is run in parts.
        seconds: for each stage, the seconds of one run at each of these sizes.
    """

    sizes: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    @classmethod
    def unknown(cls, stage_count: int) -> Costs:
        """A table for networks that take no time, as before any warm-up."""
        return cls((1,), ((0.0,),) * stage_count)

    @cached_property
    def most(self) -> float:
        """Seconds that no image takes more of, all stages together, whatever batches it is run in."""
        least = [1, *(size + 1 for size in self.sizes[:-1])]  # images that a batch of each size holds at least
        return sum(max(time / count for time, count in zip(row, least, strict=True)) for row in self.seconds)

    def run(self, stage: int, count: int) -> float:
        """Seconds to run `count` samples through a stage, in as many batches as that takes."""
        largest, seconds = self.sizes[-1], self.seconds[stage]
        whole, rest = divmod(count, largest)
        total = whole * seconds[-1]
        if rest:
            total += seconds[bisect_left(self.sizes, rest)]
        return total

    def saving(self, stage: int, count: int) -> float:
        """Seconds saved by running one more sample together with `count` others instead of by itself.

        Nothing is saved where time grows with the batch, as on a CPU, nor where the table's steps make the larger batch
        the dearer one.
        """
        apart = self.run(stage, count) + self.run(stage, 1)
        return max(0.0, apart - self.run(stage, count + 1))

    def backlog(self, waiting: Sequence[int], goes_on: Sequence[float]) -> float:
        """Seconds until everything that waits has left.

        Args:
            waiting: samples at each stage.
            goes_on: for each stage, the share of its samples that need the next one.
        """
        total, arriving = 0.0, 0.0
        for stage, (count, share) in enumerate(zip(waiting, goes_on, strict=True)):
            arriving += count
            total += self.run(stage, math.ceil(arriving))
            arriving *= share
        return total
