"""The two loops, on a clock that moves only when something in the test takes time."""

from __future__ import annotations

import asyncio
import itertools
import math

import numpy as np
import pytest

from bench.asker import Asker
from bench.errors import ClientError, Refused, TimedOut, Unreachable
from bench.load import BACK_OFF_S, Ask, Outcome, Recording, Reply, WallClock, closed_loop, open_loop
from tests.bench.fake_server import Request, image, prediction, reply, serving


class FakeClock:
    """Time that passes only by sleeping and by `spend`."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    async def sleep_until(self, when: float) -> None:
        self.time = max(self.time, when)
        await asyncio.sleep(0)

    def spend(self, seconds: float) -> None:
        self.time += seconds


def taking(clock: FakeClock, *seconds: float, timeouts: list[float] | None = None) -> Ask:
    """A server whose n-th answer takes so long, and the last one's time from then on."""
    times = itertools.chain(seconds, itertools.repeat(seconds[-1]))

    async def ask(number: int, timeout_s: float) -> Reply:
        if timeouts is not None:
            timeouts.append(timeout_s)
        clock.spend(next(times))
        return Reply(0, 0.9, None, clock.now())

    return ask


def failing(*errors: ClientError) -> Ask:
    """A server that fails so often, and then answers."""
    left = list(errors)

    async def ask(number: int, timeout_s: float) -> Reply:
        if left:
            raise left.pop(0)
        return Reply(0, 0.9, None, 100.0)

    return ask


def latencies(recording: Recording) -> list[float]:
    return [round(outcome.latency_s, 9) for outcome in recording.outcomes]


async def test_a_closed_loop_sends_its_number_of_requests() -> None:
    clock, recording, numbers = FakeClock(), Recording(), list[int]()

    async def ask(number: int, timeout_s: float) -> Reply:
        numbers.append(number)
        clock.spend(0.5)
        return Reply(0, None, None, clock.now())

    await closed_loop(ask, recording, concurrency=1, timeout_s=9, requests=4, clock=clock)
    assert numbers == [0, 1, 2, 3]
    assert latencies(recording) == [0.5] * 4
    assert recording.elapsed_s == 2.0


async def test_a_closed_loop_keeps_so_many_in_flight_and_no_more() -> None:
    inside, most, full = [0], [0], asyncio.Barrier(3)

    async def ask(number: int, timeout_s: float) -> Reply:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        await full.wait()
        inside[0] -= 1
        return Reply(0, None, None, 0.0)

    recording = Recording()
    await closed_loop(ask, recording, concurrency=3, timeout_s=9, requests=9)
    assert (len(recording.outcomes), most[0]) == (9, 3)


async def test_a_closed_loop_starts_nothing_after_its_duration() -> None:
    clock, recording = FakeClock(), Recording()
    await closed_loop(taking(clock, 0.75), recording, concurrency=1, timeout_s=9, duration_s=2.0, clock=clock)
    assert [outcome.started_at - 100 for outcome in recording.outcomes] == [0, 0.75, 1.5]
    assert recording.elapsed_s == 2.25


async def test_failures_are_recorded_and_the_loop_goes_on() -> None:
    clock, recording = FakeClock(), Recording()
    ask = failing(Refused(503, "overloaded", "later"), TimedOut("late"))
    await closed_loop(ask, recording, concurrency=1, timeout_s=9, requests=3, clock=clock)
    assert [outcome.kind for outcome in recording.outcomes] == ["503 overloaded", "timeout", ""]
    assert recording.outcomes[0].message == "HTTP 503: later"
    assert [outcome.reply is None for outcome in recording.outcomes] == [True, True, False]


async def test_a_server_that_is_gone_is_not_flooded() -> None:
    clock, recording = FakeClock(), Recording()
    ask = failing(*[Unreachable("gone")] * 1000)
    await closed_loop(ask, recording, concurrency=1, timeout_s=9, duration_s=10 * BACK_OFF_S, clock=clock)
    assert len(recording.outcomes) == pytest.approx(10, abs=1)


async def test_an_open_loop_sends_at_the_intended_times() -> None:
    clock, recording = FakeClock(), Recording()
    offsets = np.array([1.0, 2.0, 4.0])
    await open_loop(taking(clock, 0.25), recording, offsets=offsets, connections=1, timeout_s=9, clock=clock)
    assert [outcome.started_at - 100 for outcome in recording.outcomes] == [1, 2, 4]
    assert latencies(recording) == [0.25] * 3


async def test_a_stall_counts_for_every_request_that_was_due_in_it() -> None:
    """One stall of 3 s: a closed loop would show one slow answer, users met three."""
    clock, recording = FakeClock(), Recording()
    offsets = np.array([1.0, 2.0, 3.0, 10.0])
    await open_loop(taking(clock, 3.0, 0.5), recording, offsets=offsets, connections=1, timeout_s=9, clock=clock)
    assert latencies(recording) == [3.0, 2.5, 2.0, 0.5]
    assert [outcome.started_at - outcome.intended_at for outcome in recording.outcomes] == [0, 2.0, 1.5, 0]


async def test_the_wait_in_line_shortens_what_is_left_of_the_deadline() -> None:
    clock, recording, timeouts = FakeClock(), Recording(), list[float]()
    ask = taking(clock, 3.0, 0.5, timeouts=timeouts)
    await open_loop(ask, recording, offsets=np.array([1.0, 2.0]), connections=1, timeout_s=9, clock=clock)
    assert timeouts == [9.0, 7.0]


async def test_a_request_whose_deadline_passed_in_line_is_never_sent() -> None:
    clock, recording, timeouts = FakeClock(), Recording(), list[float]()
    ask = taking(clock, 5.0, 0.5, timeouts=timeouts)
    await open_loop(ask, recording, offsets=np.array([1.0, 2.0, 5.5]), connections=1, timeout_s=4, clock=clock)
    assert [outcome.kind for outcome in recording.outcomes] == ["", "unsent", ""]
    assert len(timeouts) == 2
    assert "free connection 4 s after its time" in recording.outcomes[1].message


async def test_a_schedule_without_arrivals_ends_at_once() -> None:
    recording = Recording()
    await open_loop(failing(), recording, offsets=np.array([]), connections=4, timeout_s=9)
    assert (recording.outcomes, recording.elapsed_s) == ([], 0.0)


async def test_over_http_requests_behind_a_stalled_one_count_the_stall() -> None:
    """The first of three waits until long after all three are due; one connection makes the others wait behind it."""
    gap_s = 0.01
    due = asyncio.Event()

    async def handler(request: Request) -> bytes:
        await due.wait()
        return reply(prediction())

    async with serving(handler) as url, Asker(url) as asker:

        async def ask(number: int, timeout_s: float) -> Reply:
            answer = await asker.predict(image(), timeout_s=timeout_s)
            return Reply(answer.best.stage, answer.best.energy, None, answer.received_at)

        recording, offsets = Recording(), gap_s * np.array([1.0, 2.0, 3.0])
        run = asyncio.ensure_future(open_loop(ask, recording, offsets=offsets, connections=1, timeout_s=60))
        await asyncio.sleep(0)
        await WallClock().sleep_until(recording.started_at + 5 * gap_s)
        due.set()
        await run

    assert all(outcome.reply for outcome in recording.outcomes)
    first, second, third = recording.outcomes
    assert first.latency_s >= 4 * gap_s
    assert second.latency_s >= 3 * gap_s
    assert third.latency_s >= 2 * gap_s
    assert second.started_at >= first.finished_at
    assert [outcome.intended_at - recording.started_at for outcome in recording.outcomes] == pytest.approx(offsets)


async def test_real_time_is_never_early() -> None:
    clock = WallClock()
    when = clock.now() + 0.002
    await clock.sleep_until(when)
    assert clock.now() >= when
    await clock.sleep_until(-math.inf)


def test_a_latency_runs_from_the_intended_time() -> None:
    assert Outcome(intended_at=1.0, started_at=2.0, finished_at=4.0).latency_s == 3.0
