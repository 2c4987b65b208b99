"""VID: variational information distillation.

Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", 2019, arXiv 1904.05835, section 2:
the teacher's map is Gaussian around a function of the student's, with a variance for each channel. The negative
log-likelihood without its constant; it may be below zero. The mean over all elements, as in both benchmarks.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig
from training.methods.maps import pool_match
from training.models.contract import Features

EPSILON = 1e-5
VARIANCE = 5.0


@register("vid")
class VID(Distiller):
    """Every stage of the student predicts the teacher's, and how well."""

    class Config(DistillerConfig):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 1.0}, "simkd": {"weight": 1.0}}

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        self.guesses = nn.ModuleList(Guess(student[0], teacher[0]) for student, teacher in self.shapes.stages)

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The sum over stages."""
        total = student.logits.new_zeros(())
        for guess, s, t in zip(self.guesses, student.maps[1:-1], teacher.maps[1:-1], strict=False):
            s, t = pool_match(s, t)
            mean, variance = guess(s)
            total = total + information_loss(mean, variance, t)
        return total


class Guess(nn.Module):
    """Mean and variance of a teacher's map, given the student's.

    Args:
        channels: of the student.
        wanted: of the teacher.
    """

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
        )
        self.spread = nn.Parameter(torch.full((wanted,), math.log(math.exp(VARIANCE - EPSILON) - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> mean (B, C', H, W) and variance (C',)."""
        return self.mean(x), functional.softplus(self.spread) + EPSILON


def information_loss(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """`mean 1/2 ((mu - t)^2 / v + log v)`, of maps (B, C, H, W) and a variance (C,)."""
    v = variance[:, None, None]
    return 0.5 * ((mean - teacher).square() / v + v.log()).mean()
