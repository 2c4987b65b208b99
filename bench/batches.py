"""A long run of images as requests: so many in each, so many at once, answers in order. Pure iteration, no waiting."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol, TypeVar

from bench.errors import AskedWrongly

Item = TypeVar("Item")


class Cancellable(Protocol):
    """Work under way: a task of asyncio, or a future of a thread."""

    def cancel(self) -> object:
        """Give it up."""


Started = TypeVar("Started", bound=Cancellable)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items in order, the last perhaps shorter; each is read when it is asked for.

    Raises:
        AskedWrongly: `size` is less than 1.
    """
    if size < 1:
        raise AskedWrongly(f"batch_size is at least 1, not {size}")
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


def in_flight(items: Iterable[Item], start: Callable[[Item], Started], width: int) -> Generator[Started, None, None]:
    """Start work on each item, at most `width` ahead of what was taken, and give it back in order.

    Whoever takes a piece waits for it before taking the next. What nobody took is cancelled when the iterator closes.

    Raises:
        AskedWrongly: `width` is less than 1.
    """
    if width < 1:
        raise AskedWrongly(f"concurrency is at least 1, not {width}")
    waiting: deque[Started] = deque()
    try:
        for item in items:
            waiting.append(start(item))
            if len(waiting) == width:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for work in waiting:
            work.cancel()
