"""A whole number that a module counts by and its checkpoint holds, for the CPU to decide by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Count:
    """A buffer of one number, and the same number where nobody has to wait for a GPU to read it.

    The buffer is read once, the first time that the number is asked for after a checkpoint was loaded.

    Args:
        module: what has the buffer.
        name: of the buffer.
        first: what it begins with.
    """

    def __init__(self, module: nn.Module, name: str, first: int = 0) -> None:
        module.register_buffer(name, torch.tensor(first))
        module.register_load_state_dict_post_hook(self._forget)
        self.module, self.name = module, name
        self.known: int | None = first

    def _forget(self, module: nn.Module, keys: Any) -> None:
        self.known = None

    def __int__(self) -> int:
        if self.known is None:
            self.known = int(self._buffer())
        return self.known

    def put(self, value: int) -> None:
        """Make it another number."""
        self.known = value
        self._buffer().fill_(value)

    def _buffer(self) -> Tensor:
        buffer: Tensor = getattr(self.module, self.name)
        return buffer
