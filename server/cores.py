"""A core for each worker's event loop, where there are as many of the one as of the other.

Networks that run on the event loop make a worker one busy thread. Left to the scheduler, such threads change places
with each other and with their clients, and find their caches cold. Fewer workers than cores are left alone: two servers
on one machine would take the same cores.
"""

from __future__ import annotations

import contextlib
import logging
import os

from server.settings import ServerSettings

logger = logging.getLogger(__name__)


def _known() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


EVERY = _known()  # what this process may use as it starts; none where the system does not tell
_before: frozenset[int] = frozenset()  # what it might use just before it began to keep to a core; none if it does not


def of_workers(settings: ServerSettings) -> list[int | None]:
    """One a worker: its core, or None where it goes where it likes."""
    alone = settings.device == "cpu" and settings.threads == 1
    if settings.keep_cores and alone and settings.workers == len(EVERY) > 1:
        return [*sorted(EVERY)]
    return [None] * settings.workers


def keep_to(core: int) -> None:
    """Have this thread, and those that it starts from now on, run on one core alone.

    A core that this process may use no longer, as when its container was given others, is named in the log, and the
    thread goes on where it may.
    """
    global _before
    try:
        allowed = frozenset(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
    except OSError as error:
        logger.warning("core not kept to", extra={"fields": {"core": core, "reason": str(error)}})
        return
    _before = allowed


def roam() -> None:
    """Have this thread run wherever it might before `keep_to`, as decoding and heavy networks beside a loop need.

    Where this process keeps to no core, or where it was may not be any more, nothing changes.
    """
    if _before:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _before)
