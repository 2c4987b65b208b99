"""Networks by name. Every module of this package is imported, so that a new family is one new file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from torch import nn

from cascade.errors import RecipeError
from training.models.contract import Features, Network, Stage
from training.models.families import FAMILIES, family

__all__ = ["Features", "Network", "Stage", "build", "examples", "family", "names"]

SIZE = 32

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build(name: str, num_classes: int, size: int = SIZE) -> nn.Module:
    """A fresh network with random weights.

    Args:
        name: e.g. `resnet20_a`, or `torchvision:resnet50` for any classification model of torchvision.
        num_classes: K, the width of the last layer.
        size: pixels a side of the images; few networks depend on it, such as VGG with hidden layers.

    Raises:
        RecipeError: no family knows the name, or the network cannot take such images.
    """
    for entry in FAMILIES:
        if match := entry.pattern.fullmatch(name):
            return entry.build(match, num_classes, size)
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"names look like {', '.join(examples())};"
    raise RecipeError(f"no network is called {name!r}; {hint} `rescade models` lists them")


def examples() -> list[str]:
    """One real name of every family."""
    return [entry.names[0] for entry in FAMILIES]


def names() -> list[str]:
    """Every name in use, family by family."""
    return [name for entry in FAMILIES for name in entry.names]
