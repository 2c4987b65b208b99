"""A whole measurement against a server that answers as a cascade would."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator

import pytest

from bench import address
from bench.errors import BenchError, Dropped, TimedOut
from bench.images import Sample
from bench.load import Recording
from bench.plan import Load, Variation, comparison
from bench.session import Session, schedule
from tests.bench.fake_server import Handler, Request, cascade, image, refusal, reply, serving

PETS = [
    Sample(image("cat", 0.9, 0.95), "image/jpeg", "cat"),
    Sample(image("cat", 0.3, 0.8), "image/png", "cat"),
    Sample(image("cat", 0.7, 0.9), "image/jpeg", "dog"),
    Sample(image("dog", 0.2, 0.6), "image/jpeg", "dog"),
]
ADAPTIVE = Variation("adaptive")


def closed(requests: int | None = 4, duration_s: float | None = None, warmup: int = 0, timeout_s: float = 30.0) -> Load:
    return Load(
        mode="closed", connections=2, requests=requests, duration_s=duration_s, warmup=warmup, timeout_s=timeout_s
    )


def opened(requests: int | None = None, duration_s: float | None = None) -> Load:
    return Load(
        mode="open",
        connections=2,
        requests=requests,
        duration_s=duration_s,
        rate_per_s=400.0,
        arrivals="constant",
        warmup=1,
    )


@contextlib.asynccontextmanager
async def unwatched(title: str, settings: Load, recording: Recording) -> AsyncIterator[None]:
    yield


async def measured(handler: Handler, load: Load, *variations: Variation, samples: list[Sample] = PETS) -> Session:
    async with serving(handler) as url:
        session = Session(address.parse(url), samples)
        await session.measure([(load, variation) for variation in variations or (ADAPTIVE,)], unwatched)
    return session


async def test_a_run_has_the_figures_its_images_make() -> None:
    """Two leave at stage 0, one of them wrongly called; the others pay for both stages."""
    (run,) = (await measured(cascade, closed())).reports()
    assert (run.requests, run.succeeded, run.failed, run.interrupted) == (4, 4, 0, False)
    assert [(item.count, item.share, item.accuracy) for item in run.exits] == [(2, 0.5, 0.5), (2, 0.5, 1.0)]
    assert (run.accuracy, run.judged) == (0.75, 4)
    assert run.mean_energy == pytest.approx((0.9 + 0.8 + 0.7 + 0.6) / 4)
    assert run.mean_macs == (100 + 100 + 400 + 400) / 4
    assert (run.model, run.version, run.threshold) == ("pets", "1", 0.5)
    assert run.throughput_per_s == pytest.approx(4 / run.elapsed_s)
    assert run.latency_ms is not None
    assert run.wait_ms is None
    assert run.generator_cpu_share > 0


async def test_a_comparison_runs_one_load_over_every_setting() -> None:
    session = await measured(cascade, closed(), *comparison("threshold=own,0.85"))
    runs = session.reports()
    assert [run.name for run in runs] == ["S0 alone", "adaptive", "adaptive 0.85", "full cascade"]
    assert [[item.count for item in run.exits] for run in runs] == [[4, 0], [2, 2], [1, 3], [0, 4]]
    assert [run.mean_macs for run in runs] == [100, 250, 325, 400]
    ratios = [run.versus_full for run in runs]
    assert [ratio and ratio.macs for ratio in ratios] == [0.25, 0.625, 0.8125, 1.0]
    assert ratios[-1] is not None
    assert (ratios[-1].throughput, ratios[-1].accuracy_points) == (1.0, 0.0)


async def test_without_a_full_cascade_there_are_no_ratios() -> None:
    (run,) = (await measured(cascade, closed())).reports()
    assert run.versus_full is None


async def test_a_warm_up_is_not_counted() -> None:
    asked = []

    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        asked.append(request.path)
        return await cascade(request)

    (run,) = (await measured(handler, closed(requests=3, warmup=5))).reports()
    assert asked == ["/bundle"] + ["/predict"] * 8
    assert run.requests == 3


@pytest.mark.parametrize(("load", "expected"), [(opened(duration_s=0.05), 20), (opened(requests=6), 6)])
async def test_an_open_loop_sends_its_schedule_and_takes_as_long(load: Load, expected: int) -> None:
    (run,) = (await measured(cascade, load)).reports()
    assert (run.succeeded, run.failed) == (expected, 0)
    assert run.elapsed_s >= expected / 400
    assert run.wait_ms is not None


async def test_a_closed_loop_ends_with_its_duration() -> None:
    (run,) = (await measured(cascade, closed(requests=None, duration_s=0.02))).reports()
    assert run.succeeded == run.requests > 0


async def test_poisson_arrivals_follow_the_seed() -> None:
    load = opened(requests=5).model_copy(update={"arrivals": "poisson", "seed": 3})
    assert schedule(load).tolist() == schedule(load).tolist()
    assert schedule(load).tolist() != schedule(load.model_copy(update={"seed": 4})).tolist()


async def test_errors_are_counted_and_never_timed() -> None:
    number = 0

    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        nonlocal number
        if request.path == "/predict":
            number += 1
            if number == 1:
                return refusal(503, "overloaded", "try later")
            if number == 2:
                return b""
        return await cascade(request)

    (run,) = (await measured(handler, closed())).reports()
    assert (run.succeeded, run.failed) == (2, 2)
    assert run.errors == {"503 overloaded": 1, "dropped": 1}
    assert run.error_examples["503 overloaded"] == "HTTP 503: try later"
    assert sum(item.count for item in run.exits) == 2


async def test_a_run_without_any_answer_still_has_a_report() -> None:
    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        return await cascade(request) if request.path == "/bundle" else refusal(500, "broken", "sorry")

    (run,) = (await measured(handler, closed())).reports()
    assert (run.succeeded, run.errors, run.model, run.latency_ms) == (0, {"500 broken": 4}, None, None)
    assert (run.accuracy, run.mean_energy, run.mean_macs) == (None, None, None)


async def test_a_warm_up_that_fails_wholly_ends_the_measurement() -> None:
    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        return await cascade(request) if request.path == "/bundle" else refusal(503, "not_ready", "warming up")

    with pytest.raises(BenchError, match="every warm-up request failed, the first with: HTTP 503: warming up"):
        await measured(handler, closed(warmup=3))


@pytest.mark.parametrize("bundle", [reply({"detail": "Not Found"}, 404), reply({"name": "something else"})])
async def test_costs_are_left_out_where_the_server_does_not_tell_them(bundle: bytes) -> None:
    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        return bundle if request.path == "/bundle" else await cascade(request)

    session = await measured(handler, closed())
    (run,) = session.reports()
    assert run.mean_macs is None
    assert [item.count for item in run.exits] == [2, 2]
    assert "does not describe its bundle" in session.notes[0]


async def test_a_server_that_drops_or_hangs_at_first_sight_ends_the_measurement() -> None:
    async def drop(request: Request) -> bytes:
        return b""

    with pytest.raises(Dropped):
        await measured(drop, closed())
    with pytest.raises(TimedOut):
        await measured(cascade, closed(timeout_s=0.0))


async def test_a_class_the_server_does_not_have_is_noted() -> None:
    session = await measured(cascade, closed(5), samples=[*PETS, Sample(image("cat"), "image/jpeg", "fox")])
    assert session.notes == ["the server has no class named fox: images in such folders count as wrong"]
    assert session.reports()[0].accuracy == 0.6


async def test_folders_that_are_no_classes_at_all_give_no_accuracy() -> None:
    samples = [Sample(image("cat"), "image/jpeg", name) for name in ("a", "b", "c", "d", "e", "f")]
    session = await measured(cascade, closed(6), samples=samples)
    assert session.notes == ["the server has no class named a, b, c, d, e, ...: accuracy is left out"]
    assert session.reports()[0].accuracy is None


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_garbage_collector_rests_while_answers_are_timed(enabled: bool) -> None:
    """The server lives in this process, so it can look."""
    states = []

    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        states.append(gc.isenabled())
        return await cascade(request)

    if not enabled:
        gc.disable()
    try:
        await measured(handler, closed(requests=3, warmup=2))
        assert states == [enabled] * 3 + [False] * 3
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


async def test_images_are_sent_round_and_round_in_the_order_of_the_seed() -> None:
    bodies: list[bytes] = []

    async def handler(request: Request) -> bytes | tuple[bytes, ...]:
        bodies.append(request.body)
        return await cascade(request)

    load = closed(requests=8).model_copy(update={"connections": 1, "seed": 2})
    await measured(handler, load)
    assert bodies[1:5] == bodies[5:9]
    assert sorted(bodies[1:5]) == sorted(sample.body for sample in PETS)
