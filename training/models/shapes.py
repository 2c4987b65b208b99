"""Networks that have shapes and no numbers, for what shapes alone decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _NoNumbers(TorchFunctionMode):
    """Gives weights no memory. Unlike `torch.device("meta")` it lets constructors that reckon with tensors do so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def without_numbers(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` builds, on the device `meta`: at once, however large it is."""
    with _NoNumbers():
        return build().to("meta")
