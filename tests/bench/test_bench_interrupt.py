"""Ctrl-C ends a measurement, and nothing else does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from bench import interrupt

Handler = Callable[[int, FrameType | None], object] | int | None


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN])
def before(request: pytest.FixtureRequest) -> Iterator[Handler]:
    """What Ctrl-C did before: end the process, or nothing, as in a script's background job."""
    own = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, own)


def test_work_runs_to_its_end() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(True)

    assert interrupt.run(work()) is False
    assert done == [True]


def test_an_interrupt_cancels_the_work_unless_the_process_ignores_it(before: Handler) -> None:
    ignored = before is signal.SIG_IGN

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0 if ignored else 60)

    assert interrupt.run(work()) is not ignored
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_comes_through() -> None:
    async def work() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        interrupt.run(work())


def test_a_thread_without_signal_handlers_still_measures() -> None:
    results = []

    async def work() -> None:
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: results.append(interrupt.run(work())))
    thread.start()
    thread.join(10)
    assert results == [False]
