"""Which core an event loop keeps to, and who does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server import cores
from tests.server.harness import settings_for_tests

FEWER: dict[str, dict[str, Any]] = {
    "fewer workers than cores": {"workers": 2},
    "more workers than cores": {"workers": 4},
    "networks on a GPU": {"workers": 3, "device": "cuda:0"},
    "networks with threads of their own": {"workers": 3, "threads": 2},
    "told not to": {"workers": 3, "keep_cores": False},
}


NOWHERE = 1023  # the last core that the system's own sets know


@pytest.fixture(autouse=True)
def _keeping_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_before", frozenset())


def affinity() -> set[int]:
    return os.sched_getaffinity(0)


def in_a_thread(*acts: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(1) as pool:
        return [pool.submit(act).result() for act in acts]


def test_each_of_as_many_workers_as_cores_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "EVERY", frozenset({4, 0, 2}))
    assert cores.of_workers(settings_for_tests(workers=3)) == [0, 2, 4]


@pytest.mark.parametrize("name", FEWER)
def test_otherwise_none_has(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(cores, "EVERY", frozenset({4, 0, 2}))
    settings = settings_for_tests(**FEWER[name])
    assert cores.of_workers(settings) == [None] * settings.workers


def test_there_is_nothing_to_keep_to_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "EVERY", frozenset({0}))
    assert cores.of_workers(settings_for_tests(workers=1)) == [None]


def test_a_thread_keeps_to_its_core_until_it_roams_and_others_do_not() -> None:
    before, core = affinity(), min(cores.EVERY)
    assert in_a_thread(lambda: cores.keep_to(core), affinity, cores.roam, affinity)[1::2] == [{core}, before]
    assert affinity() == before


def test_a_thread_that_one_of_them_starts_can_roam() -> None:
    def start() -> set[int]:
        cores.keep_to(min(cores.EVERY))
        with ThreadPoolExecutor(1, initializer=cores.roam) as pool:
            return pool.submit(affinity).result()

    assert in_a_thread(start) == [affinity()]


def test_roaming_goes_back_to_what_was_allowed_and_no_further() -> None:
    one = min(cores.EVERY)
    acts = (lambda: os.sched_setaffinity(0, {one}), lambda: cores.keep_to(one), cores.roam, affinity)
    assert in_a_thread(*acts)[-1] == {one}


def test_threads_of_a_process_that_keeps_to_no_core_stay_as_they_are() -> None:
    one = min(cores.EVERY)
    assert in_a_thread(lambda: os.sched_setaffinity(0, {one}), cores.roam, affinity)[-1] == {one}


def test_a_core_that_is_not_there_is_told_once_and_left(caplog: pytest.LogCaptureFixture) -> None:
    before = affinity()
    assert in_a_thread(lambda: cores.keep_to(NOWHERE), cores.roam, affinity)[-1] == before
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "core not kept to")
    assert record.__dict__["fields"]["core"] == NOWHERE


def test_cores_that_are_gone_stop_no_thread_that_roams(monkeypatch: pytest.MonkeyPatch) -> None:
    before = affinity()
    monkeypatch.setattr(cores, "_before", frozenset({NOWHERE}))
    assert in_a_thread(cores.roam, affinity)[-1] == before


def test_a_system_that_does_not_tell_has_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(cores, "EVERY", cores._known())
    assert cores.of_workers(settings_for_tests(workers=2)) == [None, None]
    cores.roam()
