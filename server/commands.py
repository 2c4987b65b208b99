"""What processes say to each other about what is served: plain data, that a pipe can carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cascade.bundle import Bundle
from server.library import Identity, identity


@dataclass(frozen=True)
class Override:
    """What replaces a bundle's own values; None where nothing does.

    Attributes:
        threshold: energy to be exceeded.
        profile: name of thresholds that replace it; never with a threshold.
        max_stage: the last stage that may run.
    """

    threshold: float | None = None
    max_stage: int | None = None
    profile: str | None = None


@dataclass(frozen=True)
class Prepare:
    """To every process: open and warm these beside what is served."""

    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Commit:
    """To every process: serve exactly these, with these values, from now on."""

    order: tuple[Identity, ...]
    overrides: Mapping[str, Override]


@dataclass(frozen=True)
class Abort:
    """To every process: forget what was prepared."""


Command = Prepare | Commit | Abort


@dataclass(frozen=True)
class Up:
    """From a worker: it takes connections and commands."""


@dataclass(frozen=True)
class Leaving:
    """From a worker: it is about to end."""


@dataclass(frozen=True)
class Reload:
    """Look at the disk and serve what is there; of one name only, if one is given."""

    name: str | None = None


@dataclass(frozen=True)
class Unload:
    """Take a name out."""

    name: str


@dataclass(frozen=True)
class SetControls:
    """Change values of a name; None goes back to its own."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Index:
    """Tell what there is."""


Request = Reload | Unload | SetControls | Index


@dataclass(frozen=True)
class Row:
    """What became of one bundle.

    Attributes:
        name, version: as far as they could be read.
        result: what was done with it.
        reason: why, where it is broken.
        folder: where it is, where it is broken.
    """

    name: str
    version: str
    result: Literal["loaded", "kept", "removed", "broken"]
    reason: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Known:
    """One version there is or was.

    Attributes:
        name, version: of the bundle, as far as they could be read.
        state: `READY`, `LOADING` or `UNAVAILABLE`.
        reason: why it is unavailable.
    """

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str = ""


@dataclass(frozen=True)
class Agreed:
    """What every process serves.

    Attributes:
        bundles: in order.
        overrides: by name.
    """

    bundles: tuple[Bundle, ...] = ()
    overrides: Mapping[str, Override] = field(default_factory=dict)

    def commit(self) -> Commit:
        """The command that puts it in."""
        return Commit(tuple(map(identity, self.bundles)), self.overrides)
