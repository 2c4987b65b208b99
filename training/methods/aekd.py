"""AEKD: the teachers' weights, batch by batch, are those whose combined gradient is shortest.

Source: Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", 2020, Eq. 5 to 7:
`CE + sum_m a_m T^2 KL(p_m || p_s)`, with a from `training.methods.min_norm` on the gradients of the divergences with
respect to the student's logits, averaged over the batch. The weights are constants: no gradient flows through them.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from training.methods.aveg import TeachersConfig, logits_of_all
from training.methods.base import Batch, Method, register
from training.methods.kd import kl
from training.methods.min_norm import weights_of


class AdaptiveConfig(TeachersConfig):
    """`bound`: C, the most that one teacher may weigh. `normalise`: bring gradients of logits to length one first."""

    bound: Annotated[float, Field(gt=0, le=1)] = 0.6
    normalise: bool = False


@register("aekd")
class AEKD(Method):
    """The student imitates the teachers where they agree, and the labels."""

    class Config(AdaptiveConfig):
        """Nothing of its own."""

    takes_several_teachers = True

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `kd`."""
        with torch.no_grad():
            targets = logits_of_all(self, batch.images)
        return self.labelled(self.student(batch.images).float(), targets, batch.labels)

    def labelled(self, logits: Tensor, targets: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """What needs logits (B, K) alone."""
        config = self.config
        slopes = torch.stack([kl_slope(logits.detach(), target, config.t).mean(0) for target in targets])
        weights = weights_of(slopes, config.bound, normalise=config.normalise)
        divergences = torch.stack([kl(logits, target, config.t) for target in targets])
        return {
            "ce": config.ce * functional.cross_entropy(logits, labels),
            "kd": config.kd * (weights * divergences).sum(),
        }


def kl_slope(student: Tensor, target: Tensor, t: float) -> Tensor:
    """The gradient of `T^2 KL / B` with respect to the student's logits, `T (p_s - p_m) / B`: (B, K)."""
    return t * (torch.softmax(student / t, 1) - torch.softmax(target / t, 1)) / len(student)
