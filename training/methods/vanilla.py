"""Plain supervised training: cross-entropy with the labels.

Source: none needed; it is the baseline of every table, and how teachers are made.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from training.methods.base import Batch, Method, MethodConfig, register


@register("vanilla")
class Vanilla(Method):
    """Cross-entropy alone."""

    class Config(MethodConfig):
        """`label_smoothing`: share of the target that is spread over all classes."""

        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    needs_teacher = False

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`."""
        logits = self.student(batch.images).float()
        return {"ce": functional.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)}
