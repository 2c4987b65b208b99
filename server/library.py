"""The bundles on disk: which there are, what has changed since they were last looked at, and what that leaves to serve.

A library is given paths. Each is a bundle, or a folder of bundles, or a folder of folders of bundles: one a name, with
one a version in it. Whatever it hands out was read whole and verified, so whoever serves it needs the disk no more.
A look at the folders gives a plan and changes nothing; the plan is taken on once it has been carried out. A folder that
is broken keeps what was read from it before.

This module serves nothing and knows nothing of who does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cascade import bundle as bundles
from cascade.bundle import MANIFEST, Bundle
from cascade.errors import BundleError, Conflict, NotFound
from cascade.keys import read_trusted
from cascade.signature import Trusted
from server.settings import ServerSettings

Identity = tuple[str, str]
"""Name and version."""


def identity(bundle: Bundle) -> Identity:
    """A bundle's name and version."""
    return bundle.manifest.name, bundle.manifest.version


def natural(text: str) -> tuple[list[tuple[bool, int, str]], str]:
    """A key that sorts digits as numbers: 2 before 10, 1.9 before 1.10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts], text


def find(paths: Iterable[Path]) -> list[Path]:
    """The folders of bundles under these paths, in order, each once.

    A path without any is given back itself: whoever reads it will say what is missing there.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        for folder in list(_bundles_in(path, 2)) or [path]:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def library_of(settings: ServerSettings) -> Library:
    """The bundles that the settings name, signed by the keys that they name.

    Raises:
        BadKey: a key cannot be read.
    """
    keys = settings.trusted_keys
    return Library(settings.bundle, None if keys is None else read_trusted(keys))


def _bundles_in(path: Path, depth: int) -> Iterator[Path]:
    if (path / MANIFEST).is_file():
        yield path
    elif depth:
        for child in _folders_in(path):
            yield from _bundles_in(child, depth - 1)


def _folders_in(path: Path) -> list[Path]:
    """Folders that are not hidden; a bundle that is being written is hidden until it is whole."""
    try:
        children = [child for child in path.iterdir() if not child.name.startswith(".") and child.is_dir()]
    except OSError:
        return []
    return sorted(children, key=lambda child: natural(child.name))


@dataclass(frozen=True)
class Finding:
    """What a look at one folder gave.

    Attributes:
        folder: where.
        bundle: verified; None if it is broken.
        fault: what is wrong with it, if something is.
        name, version: as far as they could be read.
    """

    folder: Path
    bundle: Bundle | None
    fault: str = ""
    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be served from now on.

    Attributes:
        shelf: the bundle of each folder, in order.
        fresh: those of them that are not served yet.
        gone: what is served and will not be.
        broken: what could not be read or may not be served.
        findings: what the plan was made from.
        out: names that were taken out on purpose.
    """

    shelf: Mapping[Path, Bundle]
    fresh: tuple[Bundle, ...]
    gone: tuple[Identity, ...]
    broken: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    out: frozenset[str] = frozenset()

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """All that will be served, in order."""
        return tuple(self.shelf.values())


class Library:
    """The bundles under some paths.

    Args:
        paths: bundles, or folders of them.
        trusted: keys, one of which must have signed a bundle; default that nobody need have.

    Attributes:
        out: names that were taken out on purpose.
        broken: folders that could not be read, as far as the last plan that was carried out knew.
    """

    def __init__(self, paths: Sequence[Path], trusted: Trusted | None = None) -> None:
        self._paths, self._trusted = tuple(paths), trusted
        self._held: dict[Path, Bundle] = {}
        self.out: frozenset[str] = frozenset()
        self.broken: tuple[Finding, ...] = ()

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """What is served, in order."""
        return tuple(self._held.values())

    def open(self) -> tuple[Bundle, ...]:
        """Read everything for the first time.

        Raises:
            BundleError: a bundle is broken or signed by nobody who is trusted, or two have the same name and version.
        """
        plan = self.scan()
        if plan.broken:
            first = plan.broken[0]
            field, _, message = first.fault.partition(": ")
            raise BundleError(field, message)
        self.accept(plan)
        return plan.bundles

    def scan(self) -> Plan:
        """Look at every folder."""
        return self._plan([_look(folder, self._trusted) for folder in find(self._paths)], self.out)

    def load(self, name: str) -> Plan:
        """Look for the bundles of one name alone, also if it had been taken out.

        Raises:
            NotFound: there are none.
        """
        findings = []
        looked = [_look(folder, self._trusted) for folder in find(self._paths)]
        for finding in looked:
            held = self._held.get(finding.folder)
            if name in (finding.name, held and held.manifest.name):
                findings.append(finding)
            elif held is not None:
                findings.append(_kept(finding.folder, held))
        if not any(finding.name == name for finding in findings):
            raise NotFound(f"there is no bundle named {name!r} under {' '.join(map(str, self._paths))}")
        others = [finding for finding in self._vanished(looked) if finding.name != name]
        places = {folder: place for place, folder in enumerate(self._held)}
        in_order = sorted([*findings, *others], key=lambda finding: places.get(finding.folder, len(places)))
        return self._plan(in_order, self.out - {name})

    def unload(self, name: str) -> Plan:
        """Take one name out, until it is loaded by name.

        Raises:
            NotFound: it is not served.
        """
        if name not in {bundle.manifest.name for bundle in self._held.values()}:
            raise NotFound(f"there is no model {name!r} to take out")
        return self._plan([_kept(folder, bundle) for folder, bundle in self._held.items()], self.out | {name})

    def without(self, plan: Plan, faults: Mapping[Identity, str]) -> Plan:
        """The same plan, without bundles that turned out not to work."""
        findings = [
            replace(finding, bundle=None, fault=faults[identity(finding.bundle)])
            if finding.bundle is not None and identity(finding.bundle) in faults
            else finding
            for finding in plan.findings
        ]
        return self._plan(findings, plan.out)

    def accept(self, plan: Plan) -> None:
        """Note that a plan has been carried out."""
        self._held, self.out = dict(plan.shelf), plan.out
        self.broken = plan.broken

    def _vanished(self, looked: Iterable[Finding]) -> list[Finding]:
        there = {finding.folder for finding in looked}
        return [_kept(folder, bundle) for folder, bundle in self._held.items() if folder not in there]

    def _plan(self, findings: Sequence[Finding], out: frozenset[str]) -> Plan:
        """Settle who may serve what.

        Raises:
            Conflict: nothing would be left.
        """
        inside = [finding for finding in findings if finding.name not in out]
        faults = _settle(inside, self._held)
        before = {identity(bundle): bundle for bundle in self._held.values()}
        shelf: dict[Path, Bundle] = {}
        for finding in inside:
            bundle = self._held.get(finding.folder) if finding.folder in faults else finding.bundle
            if bundle is not None and bundle.manifest.name not in out:
                # the same manifest has the same digests, so one copy is enough
                known = before.get(identity(bundle), bundle)
                shelf[finding.folder] = known if known.manifest == bundle.manifest else bundle
        broken = tuple(
            replace(finding, bundle=None, fault=faults[finding.folder])
            for finding in inside
            if finding.folder in faults
        )
        if self._held and not shelf:
            raise Conflict(f"nothing would be left to serve: add a bundle before the last one goes. {_told(broken)}")
        fresh = tuple(bundle for bundle in shelf.values() if before.get(identity(bundle)) is not bundle)
        gone = tuple(sorted(set(before) - set(map(identity, shelf.values()))))
        return Plan(shelf, fresh, gone, broken, tuple(findings), out)


def _look(folder: Path, trusted: Trusted | None) -> Finding:
    try:
        return _kept(folder, bundles.read(folder, trusted))
    except BundleError as error:
        return Finding(folder, None, str(error), *_called(folder))


def _called(folder: Path) -> Identity:
    """What a bundle that is broken, or that nobody trusted signed, says its name and version are."""
    try:
        manifest = bundles.read_manifest(folder)
    except BundleError:
        return "", ""
    return manifest.name, manifest.version


def _kept(folder: Path, bundle: Bundle) -> Finding:
    return Finding(folder, bundle, "", *identity(bundle))


def _told(broken: Sequence[Finding]) -> str:
    return "; ".join(f"{finding.folder}: {finding.fault}" for finding in broken)


def _settle(findings: Sequence[Finding], held: Mapping[Path, Bundle]) -> dict[Path, str]:
    """Why folders may not serve what was found in them.

    Of two folders with the same name and version the one that had it before keeps it; if neither had, neither gets it.
    Who loses falls back on what it had before, which may be wanted by another one: so until nothing moves.
    """
    faults = {finding.folder: finding.fault for finding in findings if finding.bundle is None}
    while True:
        claims: dict[Identity, list[Path]] = {}
        for finding in findings:
            bundle = held.get(finding.folder) if finding.folder in faults else finding.bundle
            if bundle is not None:
                claims.setdefault(identity(bundle), []).append(finding.folder)
        losers = {
            folder: _clash(wanted, folders)
            for wanted, folders in claims.items()
            if len(folders) > 1
            for folder in folders
            if folder not in held or identity(held[folder]) != wanted
        }
        if not losers:
            return faults
        faults |= losers


def _clash(wanted: Identity, folders: Sequence[Path]) -> str:
    name, version = wanted
    places = " and ".join(map(str, folders))
    return f"version: {name} version {version} is in {places}: give one of them another version"
