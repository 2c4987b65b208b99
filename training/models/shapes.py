"""Networks that have shapes and no numbers, for what shapes alone decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cascade.errors import RecipeError


class _NoNumbers(TorchFunctionMode):
    """Gives weights no memory. Unlike `torch.device("meta")` it lets constructors that reckon with tensors do so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def without_numbers(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` builds, on the device `meta`: at once, however large it is."""
    with _NoNumbers():
        return build().to("meta")


@torch.no_grad()
def output_shape(module: nn.Module, *shape: int) -> tuple[int, ...]:
    """The shape of what a module gives for one tensor, both without the batch; nothing is computed or changed.

    Raises:
        RecipeError: it cannot take such a tensor.
    """
    values = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    blank = {name: torch.empty_like(value, device="meta") for name, value in values.items()}
    try:
        result = torch.func.functional_call(module, blank, torch.zeros(2, *shape, device="meta"))
    except (AssertionError, RuntimeError) as error:
        raise RecipeError(f"the network cannot take {' x '.join(map(str, shape))} values: {error}") from error
    return tuple(result.shape[1:])
