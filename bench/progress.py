"""A progress bar on stderr that stays out of the way of what is measured.

The bar is drawn by the loop that also stamps the answers, so it is drawn once a second and only for a terminal; a
thread of its own would fight for the interpreter lock at worse moments. Runs of a second or less show none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from bench.load import Recording
from bench.plan import Load

INTERVAL_S = 1.0

Item = TypeVar("Item")


def reading(console: Console, items: list[Item], title: str) -> Iterable[Item]:
    """Pass `items` on, with a bar that shows how many have gone by."""
    return track(items, title, console=console, transient=True) if console.is_terminal else items


@contextlib.asynccontextmanager
async def watching(
    console: Console, title: str, settings: Load, recording: Recording, interval_s: float = INTERVAL_S
) -> AsyncIterator[None]:
    """Show how far a run is while the context is open.

    Args:
        console: where to draw; nothing is drawn if it is no terminal.
        title: of the run.
        settings: how many requests, or how long.
        recording: what happened so far.
        interval_s: between two drawings, and before the first one, seconds.
    """
    if not console.is_terminal:
        yield
        return
    ticker = asyncio.ensure_future(_tick(console, title, settings, recording, interval_s))
    try:
        yield
    finally:
        ticker.cancel()
        await asyncio.wait([ticker])


async def _tick(console: Console, title: str, settings: Load, recording: Recording, interval_s: float) -> None:
    await asyncio.sleep(interval_s)
    began = time.monotonic() - interval_s
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(title, total=settings.duration_s or settings.requests, state="")
        while True:
            done = len(recording.outcomes)
            completed = time.monotonic() - began if settings.duration_s else done
            bar.update(task, completed=completed, state=f"{done} requests")
            bar.refresh()
            await asyncio.sleep(interval_s)
