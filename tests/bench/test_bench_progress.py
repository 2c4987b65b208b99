"""Progress: drawn on a terminal, silent anywhere else."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from bench.load import Outcome, Recording
from bench.plan import Load
from bench.progress import reading, watching

BY_COUNT = Load(mode="closed", connections=1, requests=4, duration_s=None)
BY_TIME = Load(mode="closed", connections=1, requests=None, duration_s=2.0)


def terminal() -> tuple[Console, io.StringIO]:
    drawn = io.StringIO()
    return Console(file=drawn, force_terminal=True, width=100), drawn


@pytest.mark.parametrize("settings", [BY_COUNT, BY_TIME])
async def test_a_run_shows_how_far_it_is(settings: Load) -> None:
    console, drawn = terminal()
    recording = Recording(outcomes=[Outcome(0.0, 0.0, 1.0)] * 3)
    async with watching(console, "adaptive", settings, recording, interval_s=0.001):
        while "3 requests" not in drawn.getvalue():  # noqa: ASYNC110 - a drawing sets no event
            await asyncio.sleep(0.001)
    assert "adaptive" in drawn.getvalue()


async def test_a_short_run_shows_nothing() -> None:
    console, drawn = terminal()
    async with watching(console, "adaptive", BY_COUNT, Recording(), interval_s=60):
        await asyncio.sleep(0)
    assert drawn.getvalue() == ""


async def test_a_file_gets_no_bar() -> None:
    drawn = io.StringIO()
    console = Console(file=drawn)
    async with watching(console, "adaptive", BY_COUNT, Recording(), interval_s=0.001):
        await asyncio.sleep(0.01)
    assert list(reading(console, [1, 2], "reading")) == [1, 2]
    assert drawn.getvalue() == ""


def test_reading_passes_everything_on() -> None:
    console, drawn = terminal()
    assert list(reading(console, [1, 2, 3], "reading images")) == [1, 2, 3]
    assert "reading images" in drawn.getvalue()
