"""The engine: merging, fairness between callers, failures, deadlines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from cascade.errors import DeadlineExceeded, NotReady, Overloaded, StageFailed
from cascade.exits import Floats
from cascade.replay import replay
from server.costs import Costs
from server.engine import Engine
from server.metrics import Metrics
from server.outcome import Outcome
from server.runtime import Images
from server.scheduler import Limits
from tests.builders import FakeClock, FakeRuntime

SURE, UNSURE = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
TABLE = np.array([[SURE, UNSURE, UNSURE, SURE], [SURE, SURE, UNSURE, SURE], [SURE, SURE, SURE, SURE]])


class Gate:
    """Holds every run back until it is opened, and fails those of one stage if told to."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.broken: int | None = None

    def __call__(self, stage: int) -> None:
        self.entered.release()
        self.opened.wait(10)
        if stage == self.broken:
            raise RuntimeError("out of memory")

    async def someone_is_inside(self) -> None:
        await asyncio.to_thread(self.entered.acquire, timeout=10)


@asynccontextmanager
async def engine_of(
    runtime: FakeRuntime, samples: int = 100, batch: int = 8, wait: float = 0.0, clock: FakeClock | None = None
) -> AsyncIterator[Engine]:
    engine = Engine(runtime, Limits(samples, batch, wait), Metrics(), clock or time.monotonic)
    await engine.warm_up()
    try:
        yield engine
    finally:
        engine.close()


def stages_of(outcomes: Sequence[Outcome]) -> list[int]:
    return [outcome.stage for outcome in outcomes]


async def test_each_sample_leaves_at_its_own_stage() -> None:
    runtime = FakeRuntime(TABLE)
    async with engine_of(runtime) as engine:
        outcomes = await engine.predict(runtime.images([0, 1, 2, 3]), 0.6)
    wanted = replay(list(TABLE), 0.6)
    assert stages_of(outcomes) == wanted.stages.tolist() == [0, 1, 2, 0]
    assert [outcome.energy for outcome in outcomes] == wanted.energies.tolist()
    assert runtime.batches == [(0, [0, 1, 2, 3]), (1, [1, 2]), (2, [2])]


async def test_threshold_and_last_stage_are_each_samples_own() -> None:
    runtime = FakeRuntime(TABLE)
    async with engine_of(runtime) as engine:
        answers = await asyncio.gather(
            engine.predict(runtime.images([2]), 0.0),
            engine.predict(runtime.images([2]), 0.6, max_stage=1),
            engine.predict(runtime.images([0]), 1.0),
        )
    assert [stages_of(outcomes) for outcomes in answers] == [[0], [1], [2]]


async def test_energy_equal_to_the_threshold_goes_on() -> None:
    even = np.zeros((2, 1, 2))
    runtime = FakeRuntime(even)
    async with engine_of(runtime) as engine:
        assert stages_of(await engine.predict(runtime.images([0]), 0.5)) == [1]
        assert stages_of(await engine.predict(runtime.images([0]), np.nextafter(0.5, 0))) == [0]


async def test_accumulated_energies_add_up() -> None:
    runtime = FakeRuntime(TABLE, definition="accumulated")
    async with engine_of(runtime) as engine:
        outcomes = await engine.predict(runtime.images([0, 1, 2]), 0.6)
    assert [outcome.energy for outcome in outcomes] == replay(list(TABLE[:, :3]), 0.6, "accumulated").energies.tolist()


async def test_requests_that_wait_together_run_together() -> None:
    gate = Gate()
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime) as engine, asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.predict(runtime.images([0]), 0.6))
        await gate.someone_is_inside()
        for row in (1, 2, 3):
            tasks.create_task(engine.predict(runtime.images([row]), 0.6))
        await asyncio.sleep(0)
        gate.opened.set()
    assert runtime.batches[:3] == [(0, [0]), (0, [1, 2, 3]), (1, [1, 2])]


async def test_the_first_caller_may_leave_during_the_run_and_the_others_get_their_answers() -> None:
    gate = Gate()
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime, wait=0.01) as engine:
        callers = [asyncio.create_task(engine.predict(runtime.images([row]), 0.6)) for row in (1, 2, 0)]
        await gate.someone_is_inside()
        callers[0].cancel()
        gate.opened.set()
        assert [stages_of(await caller) for caller in callers[1:]] == [[2], [0]]
    assert runtime.batches == [(0, [1, 2, 0]), (1, [2]), (2, [2])]


async def test_a_failed_run_fails_its_own_samples_and_the_engine_goes_on() -> None:
    gate = Gate()
    gate.opened.set()
    gate.broken = 1
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime) as engine:
        answers = await asyncio.gather(
            engine.predict(runtime.images([1]), 0.6), engine.predict(runtime.images([0]), 0.6), return_exceptions=True
        )
        gate.broken = None
        again = await engine.predict(runtime.images([1]), 0.6)
    assert isinstance(answers[0], StageFailed)
    assert isinstance(answers[1], list)
    assert stages_of(again) == [1]


async def test_a_network_that_loses_a_row_has_failed() -> None:
    class Forgetful(FakeRuntime):
        def run(self, stage: int, images: Images) -> Floats:
            return super().run(stage, images)[1:]

    async with engine_of(Forgetful(TABLE)) as engine:
        with pytest.raises(StageFailed, match="stage 0"):
            await engine.predict(FakeRuntime.images([0, 1]), 0.6)


async def test_one_failed_run_fails_a_request_once_whatever_its_other_images_do() -> None:
    gate = Gate()
    gate.opened.set()
    gate.broken = 0
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime, batch=2) as engine:
        with pytest.raises(StageFailed, match="stage 0"):
            await engine.predict(runtime.images([0, 1, 2, 3]), 0.6)
        assert len(engine._scheduler) == 0


async def test_a_full_house_answers_at_once() -> None:
    gate = Gate()
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime, samples=1) as engine:
        inside = asyncio.create_task(engine.predict(runtime.images([0]), 0.6))
        await gate.someone_is_inside()
        with pytest.raises(Overloaded):
            await engine.predict(runtime.images([1]), 0.6)
        with pytest.raises(Overloaded):
            engine.check_room(float("inf"))
        gate.opened.set()
        assert stages_of(await inside) == [0]


async def test_a_late_sample_is_told_so_while_another_batch_still_runs() -> None:
    gate = Gate()
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime) as engine:
        inside = asyncio.create_task(engine.predict(runtime.images([0]), 0.6))
        await gate.someone_is_inside()
        with pytest.raises(DeadlineExceeded):
            await engine.predict(runtime.images([1, 2]), 0.6, deadline=engine._clock() + 0.05)
        gate.opened.set()
        assert stages_of(await inside) == [0]
    assert runtime.batches == [(0, [0])]


async def test_a_deadline_that_has_passed_is_refused_without_a_run() -> None:
    clock = FakeClock()
    runtime = FakeRuntime(TABLE)
    async with engine_of(runtime, clock=clock) as engine:
        clock.now = 10.0
        with pytest.raises(DeadlineExceeded):
            await engine.predict(runtime.images([0]), 0.6, deadline=9.0)
    assert runtime.batches == []


async def test_a_batch_waits_for_company_where_that_repays_and_then_no_longer() -> None:
    flat = Costs((1, 2), ((0.02, 0.02),) * 3)  # two together take as long as one
    runtime = FakeRuntime(TABLE, costs=flat)
    async with engine_of(runtime, wait=10, batch=2) as engine:
        both = [engine.predict(runtime.images([row]), 0.6) for row in (0, 3)]
        await asyncio.gather(*both)  # so that the next one is expected soon
        began = engine._clock()
        await engine.predict(runtime.images([0]), 0.6)
        assert 0.02 <= engine._clock() - began < 5
    assert runtime.batches == [(0, [0, 3]), (0, [0])]


async def test_time_running_out_between_two_stages_ends_with_the_best_answer_so_far_where_that_is_allowed() -> None:
    clock = FakeClock()
    runtime = FakeRuntime(TABLE, lambda _: setattr(clock, "now", clock.now + 0.6), costs=Costs((1,), ((0.5,),) * 3))
    async with engine_of(runtime, clock=clock) as engine:
        given = await engine.predict(runtime.images([2]), 0.6, deadline=clock.now + 1, may_truncate=True)
        with pytest.raises(DeadlineExceeded):
            await engine.predict(runtime.images([2]), 0.6, deadline=clock.now + 1)
    assert [(outcome.stage, outcome.truncated) for outcome in given] == [(0, True)]
    assert np.array_equal(given[0].logits, TABLE[0, 2].astype(np.float32))
    assert runtime.batches == [(0, [2]), (0, [2])]


async def test_a_caller_that_is_cancelled_just_before_its_answer_harms_nobody() -> None:
    runtime = FakeRuntime(TABLE)
    engine = Engine(runtime, Limits(9, 9, 0), Metrics(), inline=True)
    await engine.warm_up()
    gone = asyncio.create_task(engine.predict(runtime.images([0]), 0.6))
    stays = asyncio.create_task(engine.predict(runtime.images([2]), 0.6))
    await asyncio.sleep(0)  # both are in the queue, and the run that answers the first is due
    gone.cancel()
    assert stages_of(await stays) == [2]
    assert (gone.cancelled(), engine.in_hand) == (True, 0)
    engine.close()


async def test_one_image_that_is_late_fails_its_request_whatever_the_others_have() -> None:
    clock = FakeClock()
    costs = Costs((1,), ((0.5,), (0.3,), (0.3,)))
    runtime = FakeRuntime(TABLE, lambda _: setattr(clock, "now", clock.now + 0.75), costs=costs)
    async with engine_of(runtime, clock=clock, batch=1) as engine:
        with pytest.raises(DeadlineExceeded):  # the second has run nothing when the first could leave truncated
            await engine.predict(runtime.images([2, 2]), 0.6, deadline=clock.now + 1, may_truncate=True)
        assert engine.in_hand == 0
    assert runtime.batches == [(0, [2])]


async def test_light_networks_run_on_the_event_loop_and_heavy_ones_do_not() -> None:
    threads: list[bool] = []
    here = threading.current_thread()
    for seconds in (0.001, 0.1):
        runtime = FakeRuntime(TABLE, lambda _: threads.append(threading.current_thread() is here))
        runtime.costs = Costs((1,), ((seconds,),) * 3)
        engine = Engine(runtime, Limits(9, 9, 0), Metrics(), inline=True)
        await engine.warm_up()
        await engine.predict(runtime.images([0]), 0.6)
        assert engine.inline == threads[-1]
        engine.close()
    assert threads == [True, False]


async def test_a_failure_on_the_event_loop_fails_its_own_samples_too() -> None:
    runtime = FakeRuntime(TABLE[:, :, :2], lambda _: 1 / 0, costs=Costs.unknown(3))
    engine = Engine(runtime, Limits(9, 9, 0), Metrics(), inline=True)
    await engine.warm_up()
    with pytest.raises(StageFailed):
        await engine.predict(runtime.images([0]), 0.6)
    assert engine.in_hand == 0
    engine.close()


async def test_nothing_is_answered_before_the_warm_up_has_ended() -> None:
    runtime = FakeRuntime(TABLE)
    engine = Engine(runtime, Limits(9, 9, 0), Metrics())
    with pytest.raises(NotReady):
        await engine.predict(runtime.images([0]), 0.6)
    await engine.warm_up()
    assert engine.ready
    engine.drain()
    assert not engine.ready
    engine.close()


async def test_closing_puts_the_alarm_off() -> None:
    gate = Gate()
    runtime = FakeRuntime(TABLE, gate)
    async with engine_of(runtime) as engine:
        waiting = asyncio.create_task(engine.predict(runtime.images([0]), 0.6, deadline=engine._clock() + 60))
        await gate.someone_is_inside()
        gate.opened.set()
    waiting.cancel()
    assert engine._timer is not None
    assert engine._timer.cancelled()


async def test_shuffled_and_concurrent_callers_get_the_answers_of_replay() -> None:
    random = np.random.default_rng(3)
    table = random.normal(size=(3, 60, 5)) * 2
    runtime = FakeRuntime(table)
    wanted = replay(list(table.astype(np.float32)), 0.5)
    rows = random.permutation(60)
    async with engine_of(runtime, batch=7) as engine:
        answers = await asyncio.gather(*(engine.predict(runtime.images([row]), 0.5) for row in rows))
    assert [answer[0].stage for answer in answers] == wanted.stages[rows].tolist()
    assert [answer[0].energy for answer in answers] == wanted.energies[rows].tolist()
    assert np.array_equal(np.stack([answer[0].logits for answer in answers]), wanted.logits[rows])
