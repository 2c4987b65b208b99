"""Run a measurement in an event loop made for it, and let Ctrl-C end it with what it has.

The loop waits with `select`, whose timeout counts microseconds. The usual `epoll` counts milliseconds, rounded up: it
would send open-loop requests late and book the delay as the server's latency. uvloop's timers count milliseconds too.
`select` cannot see descriptors beyond 1,023, which is why `bench.plan` bounds the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any


def run(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end, or to the first Ctrl-C, which cancels it.

    Returns:
        Whether it was interrupted.
    """

    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_cancel_on_interrupt(work))


async def _cancel_on_interrupt(work: Coroutine[Any, Any, None]) -> bool:
    task = asyncio.ensure_future(work)
    with _on_interrupt(task.cancel):
        await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` at Ctrl-C while the context is open, unless the process was started to ignore it.

    Windows, and threads other than the main one, have no such handlers: there Ctrl-C ends without a report.
    """
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    handled = before is not signal.SIG_IGN
    if handled:
        try:
            loop.add_signal_handler(signal.SIGINT, act)
        except (NotImplementedError, RuntimeError):
            handled = False
    try:
        yield
    finally:
        if handled:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)
