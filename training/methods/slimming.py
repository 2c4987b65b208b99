"""Training for network slimming: cross-entropy, and a penalty that draws the scales of batch norms to zero.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, Eq. 1 with g = |.|.
What is cut afterwards is `training.pruning.slimming`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Method, MethodConfig, register


@register("slimming")
class Slimming(Method):
    """Cross-entropy, and the sum of all |scales| of batch norms."""

    class Config(MethodConfig):
        """`l1`: weight of the penalty; the paper has 1e-4 and 1e-5."""

        l1: Annotated[float, Field(ge=0)] = 1e-4

    needs_teacher = False

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `l1`."""
        logits = self.student(batch.images).float()
        return {
            "ce": functional.cross_entropy(logits, batch.labels),
            "l1": self.config.l1 * torch.stack([scale.abs().sum() for scale in scales(self.student)]).sum(),
        }


def scales(net: nn.Module) -> list[nn.Parameter]:
    """The scale of every batch norm.

    Raises:
        RecipeError: there is none.
    """
    found = [module.weight for module in net.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    if not found:
        raise RecipeError("method 'slimming' draws the scales of batch norms to zero, and the network has none")
    return found
