"""The models of one process: made of bundles in memory, warmed aside, then put in at one instant."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cascade.bundle import Bundle
from cascade.errors import CascadeError
from server.commands import Command, Commit, Override, Prepare
from server.library import Identity, identity
from server.models import Model, Models
from server.runtime import Runtime

logger = logging.getLogger(__name__)


class Stock:
    """Does in this process what was decided for all.

    Args:
        models: those that are asked.
        open_bundle: makes a bundle's sessions; called in a thread.
        make: makes a model of a runtime.
    """

    def __init__(
        self, models: Models, open_bundle: Callable[[Bundle], Runtime], make: Callable[[Runtime], Model]
    ) -> None:
        self._models, self._open, self._make = models, open_bundle, make
        self._prepared: dict[Identity, Model] = {}

    async def carry_out(self, command: Command) -> dict[Identity, str]:
        """Do one thing.

        Returns:
            Why bundles cannot be served, where that is so.
        """
        match command:
            case Prepare(bundles):
                return await self._prepare(bundles)
            case Commit(order, overrides):
                self._commit(order, overrides)
            case _:
                self._forget()
        return {}

    async def _prepare(self, bundles: tuple[Bundle, ...]) -> dict[Identity, str]:
        self._forget()
        faults: dict[Identity, str] = {}
        served = [model.manifest for model in self._models.all()]
        for bundle in bundles:
            if bundle.manifest in served:
                continue
            try:
                self._prepared[identity(bundle)] = await self._warm(bundle)
            except CascadeError as error:
                faults[identity(bundle)] = str(error)
            except Exception as error:
                logger.exception("bundle failed", extra={"fields": {"bundle": identity(bundle)}})
                faults[identity(bundle)] = f"it cannot be warmed: {error}"
        return faults

    async def _warm(self, bundle: Bundle) -> Model:
        model = self._make(await asyncio.to_thread(self._open, bundle))
        try:
            await model.engine.warm_up()
        except BaseException:  # cancelled as well
            model.retire()
            raise
        return model

    def _commit(self, order: tuple[Identity, ...], overrides: Mapping[str, Override]) -> None:
        """Put in what was prepared, keep what else is wanted, and let go of the rest once it is empty."""
        served = {(model.name, model.version): model for model in self._models.all()}
        chosen = [self._prepared.pop(each) if each in self._prepared else served[each] for each in order]
        self._models.put(chosen, overrides)
        for model in served.values():
            if model not in chosen:
                model.retire()
        self._forget()

    def give_up(self) -> None:
        """Do nothing: this process cannot end itself for another."""

    def close(self) -> None:
        """Let go of what was prepared."""
        self._forget()

    def _forget(self) -> None:
        for model in self._prepared.values():
            model.retire()
        self._prepared.clear()
