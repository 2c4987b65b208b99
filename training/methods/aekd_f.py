"""AEKD-F: AEKD, and hints from every teacher with weights of their own.

Source: Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", 2020, section 3.3:
AEKD's terms and `beta sum_m a'_m MSE(reg_m(f_s), f_m)` at one stage, where reg_m is a FitNet regressor (Romero et al.,
2015, arXiv 1412.6550) and a' solves a second programme: on the gradients of each teacher's hint with respect to the
student's map, flattened, averaged over the batch, and brought to length one.

The referenced library leaves the hints out of the first epoch; `warm_up` does.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.aekd import AEKD, AdaptiveConfig
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.count import Count
from training.methods.min_norm import weights_of
from training.methods.simkd import networks_of
from training.models.contract import Network
from training.models.reused import Place, Reading, place_of, shrink


@register("aekd_f")
class AEKDF(AEKD):
    """AEKD on logits, and on one stage's maps."""

    class Config(AdaptiveConfig):
        """AEKD's settings, and the hints'.

        Attributes:
            hint: which map, 0 = the stem's, 1 = the first stage's.
            beta: weight of the hints.
            warm_up: leave the hints out of the first epoch.
        """

        hint: Annotated[int, Field(ge=0)] = 2
        beta: Annotated[float, Field(ge=0)] = 100.0
        warm_up: bool = False

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, *teachers = networks_of(self.name, nets)
        stages = min(len(net.stages) for net in (student, *teachers))
        if config.hint > stages:
            raise RecipeError(f"method {self.name!r}: hint {config.hint} is no map of all networks: take 0 to {stages}")
        ours, *theirs = (place_of(Reading(net, self.hint_of), data.size) for net in (student, *teachers))
        self.body, self.teachers = (student,), tuple(teachers)
        self.regressors = nn.ModuleList(regressor(ours, place) for place in theirs)
        self.shrinks = nn.ModuleList(
            nn.Identity() if reachable(ours[1], side) else shrink(side, ours[1]) for _, side in theirs
        )
        self.batches_seen = Count(self, "seen")

    def hint_of(self, net: Network, images: Tensor) -> Tensor:
        """The map of the stage that gives hints."""
        return net.run_to(images, self.config.hint)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`, `kd` and `hint`."""
        (student,) = self.body
        with torch.no_grad():
            maps = [self.hint_of(teacher, batch.images) for teacher in self.teachers]
            targets = [
                teacher.run_from(x, self.config.hint).float() for teacher, x in zip(self.teachers, maps, strict=True)
            ]
        x = self.hint_of(student, batch.images)
        found = self.labelled(student.run_from(x, self.config.hint).float(), targets, batch.labels)
        if self.hinting():
            found["hint"] = self.config.beta * self.hint_loss(x, maps)
        return found

    def hint_loss(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """`sum_m a'_m mean (reg_m(x) - f_m)^2`, of the student's map x and each teacher's f_m."""
        terms = [
            functional.mse_loss(regress(x).float(), smaller(target).float())
            for regress, smaller, target in zip(self.regressors, self.shrinks, maps, strict=True)
        ]
        slopes = [torch.autograd.grad(term, x, retain_graph=True)[0].mean(0).flatten() for term in terms]
        weights = weights_of(torch.stack(slopes), self.config.bound, normalise=True)
        return (weights * torch.stack(terms)).sum()

    def hinting(self) -> bool:
        """Whether the first epoch is over, or counts too; counts a batch where it is trained on."""
        if not self.config.warm_up:
            return True
        if self.training:
            self.batches_seen.put(int(self.batches_seen) + 1)
        processes = distributed.get_world_size() if distributed.is_initialized() else 1
        return int(self.batches_seen) > len(self.data.index) // (self.data.batch_size * processes)


def reachable(side: int, wanted: int) -> bool:
    """Whether a convolution brings a map of `side` pixels to `wanted`."""
    return side >= wanted or 2 * side == wanted


def regressor(student: Place, teacher: Place) -> nn.Sequential:
    """FitNet's convolution, batch norm and ReLU from the student's map to the teacher's, or to its own size.

    Source: the SimKD benchmark, which has a transposed convolution where the student's map is half as large, and keeps
    the size where it is smaller otherwise: the teacher's map has to be pooled then.
    """
    (channels, side), (wanted, target) = student, teacher
    if side == 2 * target:
        convolution: nn.Module = nn.Conv2d(channels, wanted, 3, 2, 1)
    elif 2 * side == target:
        convolution = nn.ConvTranspose2d(channels, wanted, 4, 2, 1)
    elif side >= target:
        convolution = nn.Conv2d(channels, wanted, 1 + side - target)
    else:
        convolution = nn.Conv2d(channels, wanted, 3, 1, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(wanted), nn.ReLU())
