"""AVEG: the labels, and the mean divergence from several teachers.

Source: the baseline of Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space",
2020, and of table 6 of SimKD (arXiv 2203.14001): `CE + mean_m T^2 KL(p_m || p_s)` at T = 4. Its gradient is that of the
divergence from the mean of the soft targets.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from training.methods.base import Batch, Method, MethodConfig, register
from training.methods.kd import kl


class TeachersConfig(MethodConfig):
    """`ce`: weight of the labels. `kd`: weight of the teachers together. `t`: temperature."""

    ce: Annotated[float, Field(ge=0)] = 1.0
    kd: Annotated[float, Field(ge=0)] = 1.0
    t: Annotated[float, Field(gt=0)] = 4.0


@register("aveg")
class Aveg(Method):
    """The student imitates all teachers alike, and the labels."""

    class Config(TeachersConfig):
        """Nothing of its own."""

    takes_several_teachers = True

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `kd`."""
        with torch.no_grad():
            targets = logits_of_all(self, batch.images)
        logits = self.student(batch.images).float()
        divergences = torch.stack([kl(logits, target, self.config.t) for target in targets])
        return {
            "ce": self.config.ce * functional.cross_entropy(logits, batch.labels),
            "kd": self.config.kd * divergences.mean(),
        }


def logits_of_all(method: Method, images: Tensor) -> list[Tensor]:
    """Each teacher's logits (B, K) float32. Call under no_grad."""
    return [teacher(images).float() for teacher in method.nets.teachers]
