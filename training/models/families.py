"""The list of families, each of which builds networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

Builder = Callable[[re.Match[str], int, int], nn.Module]


@dataclass(frozen=True)
class Family:
    """A pattern of names and what builds them.

    Attributes:
        name: of the module it is in.
        pattern: of the names it knows.
        build: the name's match, number of classes, pixels a side -> network.
        names: those in use, a typical one first; the pattern may know more.
        whole: builds the same layers in less time, good for forward passes alone; default `build`.
    """

    name: str
    pattern: re.Pattern[str]
    build: Builder
    names: tuple[str, ...]
    whole: Builder


FAMILIES: list[Family] = []


def family(pattern: str, *names: str, whole: Builder | None = None) -> Callable[[Builder], Builder]:
    """Register a builder for every model name that matches `pattern` as a whole."""

    def add(build: Builder) -> Builder:
        module = build.__module__.rpartition(".")[2]
        FAMILIES.append(Family(module, re.compile(pattern), build, names, whole or build))
        return build

    return add


def one_of(keys: Iterable[object]) -> str:
    """The pattern of exactly these, for families that are a table."""
    return "|".join(re.escape(str(key)) for key in keys)
