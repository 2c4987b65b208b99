"""The models of one process: prepared aside, put in at once, and closed when the last request has let go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.exits import Floats
from server.commands import Abort, Commit, Override, Prepare
from server.metrics import Metrics
from server.models import Controls, Model, Models
from server.stock import Stock
from tests.builders import FakeRuntime, tiny_bundle
from tests.server.harness import settings_for_tests

SURE = np.array([[[9.0, 0.0]]])
ONE: Floats = FakeRuntime.images([0])


@dataclass
class Kept:
    """A stock and its models; bundles named in `broken` or `cold` cannot be opened or warmed."""

    models: Models
    stock: Stock
    broken: set[str]
    cold: set[str]


@asynccontextmanager
async def kept(before: Callable[[int], object] | None = None) -> AsyncIterator[Kept]:
    def open_bundle(bundle: Bundle) -> FakeRuntime:
        name = bundle.manifest.name
        if name in here.broken:
            raise BundleError("stages[0].file", "cannot be loaded")
        warm = (lambda: 1 / 0) if name in here.cold else lambda: None
        runtime = FakeRuntime(SURE, before, warm=warm)
        runtime.manifest = bundle.manifest
        return runtime

    models = Models([])
    make = partial(Model, settings_for_tests(), metrics=Metrics())
    here = Kept(models, Stock(models, open_bundle, make), set(), set())
    yield here
    here.stock.close()
    here.stock.give_up()
    for model in models.all():
        model.retire()


def bundles(*names: str) -> Prepare:
    return Prepare(tuple(tiny_bundle(1, classes=2, name=name[:3], version=name[3:]) for name in names))


async def test_what_is_prepared_is_served_only_once_it_is_put_in() -> None:
    async with kept() as here:
        assert await here.stock.carry_out(bundles("cat1", "dog1")) == {}
        assert here.models.all() == []
        await here.stock.carry_out(Commit((("dog", "1"), ("cat", "1")), {"cat": Override(0.9, 1)}))
        assert [(model.name, model.engine.ready) for model in here.models.all()] == [("dog", True), ("cat", True)]
        assert here.models.get("cat").controls == Controls(0.9, 1)


async def test_each_bundle_that_cannot_be_opened_or_warmed_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async with kept() as here:
        here.broken.add("cat")
        here.cold.add("dog")
        faults = await here.stock.carry_out(bundles("cat1", "dog1", "fox1"))
    assert faults == {
        ("cat", "1"): "stages[0].file: cannot be loaded",
        ("dog", "1"): "it cannot be warmed: division by zero",
    }
    assert [record.getMessage() for record in caplog.records] == ["bundle failed"]


async def test_what_is_served_already_is_not_opened_again() -> None:
    async with kept() as here:
        await here.stock.carry_out(bundles("cat1"))
        await here.stock.carry_out(Commit((("cat", "1"),), {}))
        model = here.models.get()
        await here.stock.carry_out(bundles("cat1", "cat2"))
        await here.stock.carry_out(Commit((("cat", "1"), ("cat", "2")), {}))
        assert here.models.get("cat", "1") is model


async def test_what_was_prepared_and_is_not_wanted_is_forgotten() -> None:
    async with kept() as here:
        await here.stock.carry_out(bundles("cat1", "dog1"))
        await here.stock.carry_out(Abort())
        with pytest.raises(KeyError):
            await here.stock.carry_out(Commit((("cat", "1"),), {}))


async def test_a_request_in_hand_ends_on_the_version_it_began_with() -> None:
    entered, opened = threading.Event(), threading.Event()

    def before(stage: int) -> None:
        entered.set()
        opened.wait(10)

    async with kept(before) as here:
        await here.stock.carry_out(bundles("cat1"))
        await here.stock.carry_out(Commit((("cat", "1"),), {"cat": Override(0.5)}))
        old = here.models.get()
        with old as controls:
            asked = asyncio.create_task(old.engine.predict(ONE, controls.threshold))
            await asyncio.to_thread(entered.wait, 10)
            await here.stock.carry_out(bundles("cat2"))
            await here.stock.carry_out(Commit((("cat", "2"),), {"cat": Override(0.7)}))
            opened.set()
            assert (await asked)[0].stage == 0
            assert (controls.threshold, here.models.get().version) == (0.5, "2")
            assert not old.engine._thread._shutdown
        assert old.engine._thread._shutdown
