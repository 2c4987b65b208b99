"""Networks by name. Every module of this package is imported, so that a new family is one new file."""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from cascade.errors import RecipeError
from training.models.contract import FAMILIES, Features, Network, Stage, family

__all__ = ["Features", "Network", "Stage", "build", "family", "names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build(name: str, num_classes: int) -> nn.Module:
    """A fresh network with random weights.

    Args:
        name: e.g. `resnet20_a`, or `torchvision:resnet50` for any classification model of torchvision.
        num_classes: K, the width of the last layer.

    Raises:
        RecipeError: no family knows the name.
    """
    for entry in FAMILIES:
        if match := entry.pattern.fullmatch(name):
            return entry.build(match, num_classes)
    raise RecipeError(f"no network is called {name!r}; names look like {', '.join(names())}")


def names() -> list[str]:
    """One or two real names of every family."""
    return [example for entry in FAMILIES for example in entry.examples]
