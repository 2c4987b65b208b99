"""A memory that grows while a method trains, and that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Rows(nn.Module):
    """A buffer that grows at its end, and comes back from a checkpoint as long as it was.

    Args:
        width: shape of a row.
        dtype: of its numbers.
    """

    rows: Tensor

    def __init__(self, *width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("rows", torch.empty(0, *width, dtype=dtype))

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Tensor, most: int | None = None) -> None:
        """Append rows, and let the first go where there would be more than `most`."""
        together = torch.cat([self.rows, rows.detach()])
        self.rows = together if most is None else together[-most:]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        kept = state_dict.get(f"{prefix}rows")
        if kept is not None:
            self.rows = self.rows.new_empty(len(kept), *self.rows.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)
