"""Every network by name, with what it costs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from cascade.errors import RecipeError
from training.models.count import macs, params
from training.models.families import FAMILIES, Family
from training.models.shapes import without_numbers


@dataclass(frozen=True)
class Listed:
    """One network.

    Attributes:
        name: for a recipe.
        family: the module that builds it.
        params: trainable parameters; None where it cannot be built for the size.
        macs: multiply-accumulates of one image; None where it cannot take the size.
    """

    name: str
    family: str
    params: int | None
    macs: int | None


def listing(pattern: str, num_classes: int, size: int) -> Iterator[Listed]:
    """Count the networks in use, family by family.

    Args:
        pattern: of their names, as a shell matches them; `*` is all of them.
        num_classes: K.
        size: pixels a side.
    """
    for entry in FAMILIES:
        for name in fnmatch.filter(entry.names, pattern):
            yield _listed(entry, name, num_classes, size)


def _listed(entry: Family, name: str, num_classes: int, size: int) -> Listed:
    match = entry.pattern.fullmatch(name)
    assert match is not None, "a family knows its own names"
    parameters = cost = None
    try:
        net = without_numbers(lambda: entry.whole(match, num_classes, size))
        parameters = params(net)
        cost = macs(net, size)
    except RecipeError:  # what the size leaves of it is told
        pass
    return Listed(name, entry.name, parameters, cost)
