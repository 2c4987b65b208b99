"""The two ways to put load on a server, and the record both leave behind.

Closed loop: N workers, each of which sends its next request when the last is answered. It shows what a server can do,
and it is polite: a server that stalls is asked less, so that the stall appears in few latencies ("coordinated
omission").

Open loop: requests have times of their own, as users do. Latency is counted from the time a request was *meant* to be
sent. At most `connections` requests are in flight; one that is due while all are busy waits in line, and that wait is
part of its latency. The deadline counts from the intended time too, so that a run ends at most one timeout after its
last arrival, however far behind the server is; a request whose deadline passes in the line is recorded as unsent.

The time comes from a `Clock`, the answers from an `Ask`: no socket is opened here.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.arrivals import Offsets
from bench.errors import ClientError, Unreachable

UNSENT = "unsent"
BACK_OFF_S = 0.05


class Clock(Protocol):
    """Time, and a way to wait for it."""

    def now(self) -> float:
        """Monotonic time, seconds."""

    async def sleep_until(self, when: float) -> None:
        """Return at `when` or later, never earlier."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        """Monotonic time, seconds."""
        return time.perf_counter()

    async def sleep_until(self, when: float) -> None:
        """Return at `when` or later, never earlier."""
        while (left := when - time.perf_counter()) > 0:  # noqa: ASYNC110 - a sleep may end a tick early
            await asyncio.sleep(left)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is kept of an answer.

    Attributes:
        stage: where the sample left.
        energy: the energy tested there, if there was one.
        correct: whether the label was right; `None` where it is not known.
        received_at: when the answer's last byte came, seconds on the run's clock.
    """

    stage: int
    energy: float | None
    correct: bool | None
    received_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request, answered or not.

    Attributes:
        intended_at: when it was meant to be sent, seconds.
        started_at: when it was sent; for an unsent one, when it was given up.
        finished_at: when its answer or its failure came.
        reply: the answer, or `None`.
        kind: the kind of failure, empty for a success.
        message: the failure in words.
    """

    intended_at: float
    started_at: float
    finished_at: float
    reply: Reply | None = None
    kind: str = ""
    message: str = ""

    @property
    def latency_s(self) -> float:
        """From the intended time to the last byte, seconds."""
        return self.finished_at - self.intended_at


Ask = Callable[[int, float], Awaitable[Reply]]
"""Sends request number n with a timeout in seconds; raises ClientError."""


@dataclass(slots=True)
class Recording:
    """What happened so far; still true when a run is cut short.

    Attributes:
        started_at: when the run began, seconds.
        outcomes: in the order they finished.
    """

    started_at: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        """From the start to the last answer, seconds."""
        return max((outcome.finished_at for outcome in self.outcomes), default=self.started_at) - self.started_at


async def closed_loop(
    ask: Ask,
    recording: Recording,
    *,
    concurrency: int,
    timeout_s: float,
    requests: int | None = None,
    duration_s: float = math.inf,
    clock: Clock | None = None,
) -> None:
    """Keep `concurrency` requests in flight until there were `requests`, or until `duration_s` is over.

    Requests in flight at the end of the duration are waited for. A worker that cannot connect waits a moment before
    it tries again, so that a dead server is not flooded.

    Args:
        ask: sends one request.
        recording: filled as answers come.
        concurrency: number of workers.
        timeout_s: deadline of a request, seconds.
        requests: how many; default without end.
        duration_s: how long new requests are sent, seconds.
        clock: default real time.
    """
    clock = clock or WallClock()
    numbers = iter(itertools.count() if requests is None else range(requests))
    recording.started_at = clock.now()
    ends_at = recording.started_at + duration_s

    async def worker() -> None:
        while clock.now() < ends_at and (number := next(numbers, None)) is not None:
            outcome = await _attempt(ask, number, clock.now(), timeout_s, clock)
            recording.outcomes.append(outcome)
            if outcome.kind == Unreachable.kind:
                await clock.sleep_until(clock.now() + BACK_OFF_S)

    await _all(worker, concurrency)


async def open_loop(
    ask: Ask,
    recording: Recording,
    *,
    offsets: Offsets,
    connections: int,
    timeout_s: float,
    clock: Clock | None = None,
) -> None:
    """Send requests at the times they are meant to be sent, whatever the server does.

    Args:
        ask: sends one request.
        recording: filled as answers come.
        offsets: (n,) intended times, seconds after the start, ascending.
        connections: most requests in flight.
        timeout_s: deadline of a request, counted from its intended time, seconds.
        clock: default real time.
    """
    clock = clock or WallClock()
    arrivals: Iterator[tuple[int, float]] = enumerate(offsets.tolist())
    recording.started_at = clock.now()

    async def worker() -> None:
        for number, offset in arrivals:
            intended_at = recording.started_at + offset
            await clock.sleep_until(intended_at)
            recording.outcomes.append(await _attempt(ask, number, intended_at, timeout_s, clock))

    await _all(worker, min(connections, len(offsets)))


async def _attempt(ask: Ask, number: int, intended_at: float, timeout_s: float, clock: Clock) -> Outcome:
    """Send one request with what is left of its time."""
    started_at = clock.now()
    left = intended_at + timeout_s - started_at
    if left <= 0:
        message = f"still waiting for a free connection {timeout_s:g} s after its time"
        return Outcome(intended_at, started_at, started_at, None, UNSENT, message)
    try:
        reply = await ask(number, left)
    except ClientError as error:
        return Outcome(intended_at, started_at, clock.now(), None, error.kind, str(error))
    return Outcome(intended_at, started_at, reply.received_at, reply)


async def _all(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` workers to their end; they share one iterator, so the next request goes to the next free one."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(worker())
