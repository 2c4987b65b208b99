"""Changing what is served, while it is served: who decides, what is said to every process, and in which order.

Whatever is decided is decided in one place, one thing after another: in the parent of several workers, or in the only
process. It is carried out in two phases. First every process opens and warms what is new, beside what it serves; what
fails in one of them is broken for all. Then all of them put it in, each at one instant. A process that dies or hangs
meanwhile is given up, and whoever takes its place begins with what was agreed.

The first process tries what is new alone, so that a bundle that brings a process down does not bring them all down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Protocol

from cascade.bundle import Bundle
from cascade.errors import CascadeError, Conflict, NotFound, NotReady, ServiceError
from server.commands import (
    Abort,
    Agreed,
    Command,
    Index,
    Known,
    Override,
    Prepare,
    Reload,
    Request,
    Row,
    SetControls,
    Unload,
)
from server.library import Identity, Library, Plan, check_profile, identity

logger = logging.getLogger(__name__)

COMMIT_S = 10.0  # for what takes no time


class Member(Protocol):
    """A process that serves."""

    async def carry_out(self, command: Command) -> dict[Identity, str]:
        """Do one thing; gives back why bundles cannot be served.

        Raises:
            ServiceError: it is gone, or cannot do it.
        """
        ...

    def give_up(self) -> None:
        """Trust it no more: end it, if somebody else can take its place."""
        ...


class Coordinator:
    """Decides what is served, and has every process do it.

    Args:
        library: whose bundles have been opened.
        patience_s: how long a process may take to open and warm what is new.
        members: processes that serve what the library has, from the start.
    """

    def __init__(self, library: Library, patience_s: float, members: Sequence[Member] = ()) -> None:
        self._library, self._patience_s = library, patience_s
        self._members = list(members)
        self._agreed = Agreed(library.bundles)
        self._one_at_a_time = asyncio.Lock()

    async def carry_out(self, request: Request) -> Any:
        """Do what is asked, after whatever was asked before.

        Raises:
            NotFound: there is nothing of that name.
            Conflict: nothing would be left to serve.
            NotReady: nobody is there to do it.
        """
        if isinstance(request, Index):
            return self._known()
        async with self._one_at_a_time:
            match request:
                case Reload(name):
                    look = self._library.scan if name is None else partial(self._library.load, name)
                    return await self._change(await asyncio.to_thread(look))
                case Unload(name):
                    return await self._change(self._library.unload(name))
                case _:
                    return await self._set_controls(request.name, request.changes)

    async def welcome(self, member: Member) -> str | None:
        """Bring a new process to what was agreed; from then on it is one of them.

        Returns:
            Why that cannot be done, or None.
        """
        agreed = self._agreed
        fault = await self._bring(member, agreed)
        async with self._one_at_a_time:
            if self._agreed is not agreed:
                fault = await self._bring(member, self._agreed)
            if fault is None:
                self._members.append(member)
        return fault

    def dismiss(self, member: Member) -> None:
        """Forget a process that is gone."""
        if member in self._members:
            self._members.remove(member)

    async def _bring(self, member: Member, agreed: Agreed) -> str | None:
        faults = await self._tell(member, Prepare(agreed.bundles), self._patience_s)
        if faults:
            return next(iter(faults.values()))
        if faults is None or await self._tell(member, agreed.commit(), COMMIT_S) is None:
            return "a worker ended, or hung, while it opened the bundles"
        return None

    async def _change(self, plan: Plan) -> tuple[Row, ...]:
        faults = await self._prepare(plan.fresh)
        try:
            plan = self._library.without(plan, faults)
        except Conflict:
            await self._tell_all(self._members, Abort(), COMMIT_S)
            raise
        before = self._agreed
        order = tuple(map(identity, plan.bundles))
        if plan.fresh or order != before.commit().order:
            await self._agree(replace(before, bundles=plan.bundles))
        elif faults:
            await self._tell_all(self._members, Abort(), COMMIT_S)
        self._library.accept(plan)
        return _rows(plan)

    async def _prepare(self, bundles: tuple[Bundle, ...]) -> dict[Identity, str]:
        if not bundles:
            return {}
        if not self._members:
            raise NotReady("no worker is ready to open a bundle: try again in a few seconds")
        first, *rest = self._members
        faults = await self._tell(first, Prepare(bundles), self._patience_s)
        if faults is None:
            return dict.fromkeys(map(identity, bundles), "a worker ended, or hung, while it opened this")
        if good := tuple(bundle for bundle in bundles if identity(bundle) not in faults):
            for more in await self._tell_all(rest, Prepare(good), self._patience_s):
                faults |= more
        return faults

    async def _agree(self, agreed: Agreed) -> None:
        self._agreed = agreed  # first, since whoever replaces a process that fails now begins with it
        await self._tell_all(self._members, agreed.commit(), COMMIT_S)

    async def _set_controls(self, name: str, changes: Mapping[str, Any]) -> tuple[Override, Override]:
        manifests = [bundle.manifest for bundle in self._agreed.bundles if bundle.manifest.name == name]
        if not manifests:
            raise NotFound(f"there is no model {name!r}")
        profile = changes.get("profile")
        for manifest in manifests:
            check_profile(manifest, profile)
        old = self._agreed.overrides.get(name, Override())
        new = replace(old, **_without_rival(changes))
        await self._agree(replace(self._agreed, overrides={**self._agreed.overrides, name: new}))
        return old, new

    async def _tell_all(self, members: Sequence[Member], command: Command, limit_s: float) -> list[dict[Identity, str]]:
        told = await asyncio.gather(*(self._tell(member, command, limit_s) for member in members))
        return [faults for faults in told if faults is not None]

    async def _tell(self, member: Member, command: Command, limit_s: float) -> dict[Identity, str] | None:
        """Have one process do something; None where it is gone, or has been given up for taking too long."""
        try:
            async with asyncio.timeout(limit_s):
                return await member.carry_out(command)
        except (TimeoutError, ServiceError) as error:
            fields = {"command": type(command).__name__, "reason": str(error) or f"not done within {limit_s} s"}
            logger.error("process given up", extra={"fields": fields})
            member.give_up()
            return None

    def _known(self) -> list[Known]:
        held = [Known(*identity(bundle), "READY") for bundle in self._library.bundles]
        there = {(known.name, known.version) for known in held}
        broken = [
            Known(finding.name or finding.folder.name, finding.version, "UNAVAILABLE", finding.fault)
            for finding in self._library.broken
            if (finding.name, finding.version) not in there
        ]
        return [*held, *broken, *(Known(name, "", "UNAVAILABLE", "unloaded") for name in sorted(self._library.out))]


def _without_rival(changes: Mapping[str, Any]) -> dict[str, Any]:
    """A profile takes the place of a threshold, and a threshold that of a profile."""
    rivals = (("threshold", "profile"), ("profile", "threshold"))
    gone = {rival: None for name, rival in rivals if changes.get(name) is not None}
    return {**changes, **gone}


def _rows(plan: Plan) -> tuple[Row, ...]:
    loaded = set(map(identity, plan.fresh))
    return (
        *(Row(*each, "loaded" if each in loaded else "kept") for each in map(identity, plan.bundles)),
        *(Row(*each, "removed") for each in plan.gone),
        *(Row(each.name, each.version, "broken", each.fault, str(each.folder)) for each in plan.broken),
    )


class Control:
    """What a process asks of whoever decides, be that itself or its parent.

    Args:
        ask: has a request carried out.
        is_warm: whether this process serves a name and version.
    """

    def __init__(self, ask: Callable[[Request], Awaitable[Any]], is_warm: Callable[[str, str], bool]) -> None:
        self._ask, self._is_warm = ask, is_warm

    async def reload(self) -> tuple[Row, ...]:
        """Look at the disk again, and serve what is there.

        Raises:
            Conflict: nothing would be left to serve.
        """
        return await self._changed("reloaded", Reload())

    async def load(self, name: str) -> tuple[Row, ...]:
        """Serve what is on the disk of one name, also if it was taken out before.

        Raises:
            NotFound: there is nothing of that name.
        """
        return await self._changed("model loaded", Reload(name))

    async def unload(self, name: str) -> tuple[Row, ...]:
        """Take a name out, until it is loaded by name.

        Raises:
            NotFound: it is not served.
            Conflict: it is the last one.
        """
        return await self._changed("model unloaded", Unload(name))

    async def set_controls(self, name: str, changes: Mapping[str, Any]) -> tuple[Override, Override]:
        """Change what requests to a name get that do not ask for something else.

        Returns:
            What replaced its own values before, and what does now.

        Raises:
            NotFound: it is not served.
        """
        old, new = await self._ask(SetControls(name, changes))
        logger.info("controls changed", extra={"fields": {"model": name, "old": asdict(old), "new": asdict(new)}})
        return old, new

    async def index(self) -> list[Known]:
        """Every version there is, and those there should be."""
        known: list[Known] = await self._ask(Index())
        cold = [each.state == "READY" and not self._is_warm(each.name, each.version) for each in known]
        return [replace(each, state="LOADING") if is_cold else each for each, is_cold in zip(known, cold, strict=True)]

    async def _changed(self, event: str, request: Request) -> tuple[Row, ...]:
        try:
            rows: tuple[Row, ...] = await self._ask(request)
        except CascadeError as error:
            logger.error("nothing changed", extra={"fields": {"reason": str(error)}})
            raise
        logger.info(event, extra={"fields": {"bundles": [asdict(row) for row in rows if row.result != "broken"]}})
        for row in rows:
            if row.result == "broken":
                fields = {"folder": row.folder, "model": row.name, "version": row.version, "reason": row.reason}
                logger.error("bundle not loaded", extra={"fields": fields})
        return rows
