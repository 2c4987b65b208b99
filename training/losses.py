"""An epoch's losses, added up without making the CPU wait for the device that computes them.

To read one number off a GPU is to wait for all that the GPU was given before. So the losses of a batch stay where they
are until somebody wants a number, and are then read together: a few times a second, before a checkpoint, and when the
epoch ends. They are added on the CPU, in float64 and batch by batch, whichever device computed them: the same losses
have the same sums however often they were read. The losses themselves may differ from one device to another.
"""

from __future__ import annotations

import itertools
import math
import time

import torch
from torch import Tensor

from cascade.errors import RecipeError


class Losses:
    """Sums over the batches of one epoch, by name.

    Args:
        step: its name, for messages.
        epoch: from 0.
        read_s: seconds from one reading to the next, where nobody asks.
        sums: of the batches before, as a checkpoint has them.
    """

    def __init__(self, step: str, epoch: int, read_s: float, sums: dict[str, float] | None = None) -> None:
        self.step, self.epoch, self.read_s = step, epoch, read_s
        self.sums = dict(sums or {})
        self.unread: list[tuple[int, tuple[str, ...], Tensor]] = []
        self.read_at = time.monotonic()

    def add(self, batch: int, names: tuple[str, ...], values: Tensor) -> None:
        """Take the losses of a batch.

        Args:
            batch: from 0.
            names: of the losses.
            values: (len(names),), any floating dtype; left on its device for now.

        Raises:
            RecipeError: as `read`.
        """
        self.unread.append((batch, names, values.detach()))
        if time.monotonic() - self.read_at >= self.read_s:
            self.read()

    def read(self) -> dict[str, float]:
        """The sums so far; waits for the device.

        Raises:
            RecipeError: a loss was not finite; names the first.
        """
        unread, self.unread = self.unread, []
        numbers = iter(torch.cat([values for _, _, values in unread]).tolist() if unread else [])
        for batch, names, values in unread:
            for name, value in zip(names, itertools.islice(numbers, len(values)), strict=True):
                if not math.isfinite(value):
                    raise RecipeError(
                        f"{self.step}: loss {name!r} is {value} in epoch {self.epoch + 1}, batch {batch + 1}: "
                        "lower schedule.lr, or set schedule.clip"
                    )
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.read_at = time.monotonic()
        return self.sums
