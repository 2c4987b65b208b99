"""The samples that wait at a stage: the more urgent first, and among equals those that came first."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator

ORDINARY = 2  # between the most urgent, 1, and all that can wait
NEVER = float("inf")


class Waiting:
    """Samples by priority and time.

    Attributes:
        newest: when the last one joined, on the clock of whoever adds.
    """

    def __init__(self) -> None:
        self.newest = -NEVER
        self._count = 0
        self._levels: dict[int, OrderedDict[int, float]] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for priority in self._order:
            yield from self._levels[priority]

    def add(self, id_: int, now: float, priority: int) -> None:
        """Let a sample join.

        Args:
            id_: of the sample.
            now: when.
            priority: 1 is the most urgent.
        """
        if (level := self._levels.get(priority)) is None:
            level = self._levels[priority] = OrderedDict()
            insort(self._order, priority)
        level[id_] = self.newest = now
        self._count += 1

    def remove(self, id_: int, priority: int) -> None:
        """Let a sample go that waits here."""
        level = self._levels[priority]
        del level[id_]
        self._count -= 1
        if not level:
            self._close(priority)

    def take(self, most: int) -> tuple[int, ...]:
        """The samples whose turn it is, which wait no more."""
        taken: list[int] = []
        while self._count and len(taken) < most:
            level = self._levels[self._order[0]]
            taken.append(level.popitem(last=False)[0])
            self._count -= 1
            if not level:
                self._close(self._order[0])
        return tuple(taken)

    def oldest(self) -> float:
        """When the one joined that has waited longest; never, where nobody waits."""
        return min((next(iter(level.values())) for level in self._levels.values()), default=NEVER)

    def _close(self, priority: int) -> None:
        """Forget a level that is empty."""
        del self._levels[priority]
        self._order.remove(priority)
