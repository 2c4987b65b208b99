"""Any classification model of torchvision, by name: `torchvision:resnet50`.

Source: torchvision.models. Weights are never downloaded here: a recipe names a file.
"""

from __future__ import annotations

import re

import torchvision
from torch import nn

from cascade.errors import RecipeError
from training.models.contract import family


@family(r"torchvision:(\w+)", "torchvision:resnet50")
def from_torchvision(name: re.Match[str], num_classes: int) -> nn.Module:
    """Build without weights.

    Raises:
        RecipeError: torchvision has no such classification model.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name[1] not in known:
        raise RecipeError(f"torchvision has no classification model {name[1]!r}; it has {', '.join(known)}")
    net: nn.Module = torchvision.models.get_model(name[1], weights=None, num_classes=num_classes)
    return net
