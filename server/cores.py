"""A core for each worker's event loop, where there are as many of the one as of the other.

Networks that run on the event loop make a worker one busy thread. Left to the scheduler, such threads change places
with each other and with their clients, and find their caches cold. Fewer workers than cores are left alone: two servers
on one machine would take the same cores.
"""

from __future__ import annotations

import os

from server.settings import ServerSettings


def _known() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


EVERY = _known()  # what this process may use; none where the system does not tell


def of_workers(settings: ServerSettings) -> list[int | None]:
    """One a worker: its core, or None where it goes where it likes."""
    alone = settings.device == "cpu" and settings.threads == 1
    if settings.keep_cores and alone and settings.workers == len(EVERY) > 1:
        return sorted(EVERY)
    return [None] * settings.workers


def keep_to(core: int) -> None:
    """Have this thread, and those that it starts from now on, run on one core alone."""
    os.sched_setaffinity(0, {core})


def roam() -> None:
    """Have this thread run on any core again, which decoding and heavy networks beside an event loop need."""
    if EVERY:
        os.sched_setaffinity(0, EVERY)
