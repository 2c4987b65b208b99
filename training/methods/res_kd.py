"""Residual-guided distillation: a res-student learns what the stages before it still lack of the teacher.

Source: "ResKD: Residual-Guided Knowledge Distillation", 2021, Algorithm 1 and Eq. 3. The residual teacher
T_i = T_{i-1} - R_{i-1} is no network: by telescoping it is `T - S_{i-1}`, computed here on the very batch that R_i
receives, in fp32. The loop over stages, with its stopping rules, is `training.steps`.

The paper says only "R_i = KD(T_i)". Where the labels' term goes is a choice (`ce_on`): `res` puts in the res-student's
own logits, which is the literal reading; `sum` the sum that is served; `none` is pure regression of the residual.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Method, Networks, TrainingSet, register
from training.methods.kd import TeacherTerm


@register("res_kd")
class ResKD(Method):
    """One res-student; every earlier stage is frozen."""

    class Config(TeacherTerm):
        """`tau`: weight of the residual's term. `ce_on`: what the labels judge."""

        tau: Annotated[float, Field(ge=0, le=1)] = 0.1
        ce_on: Literal["res", "sum", "none"] = "res"

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if not nets.earlier:
            raise RecipeError("method 'res_kd' trains a res-student: use it under residual, after a student")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ts` and, unless `ce_on` is none, `ce`."""
        with torch.no_grad():
            teacher = self.teacher(batch.images)
            so_far = sum_of(self.nets.earlier, batch.images)
        residual = self.student(batch.images).float()
        config = self.config
        if config.ts_loss == "kl" and config.ce_on == "sum":
            match = config(so_far + residual, teacher)  # KL is not a function of the difference, unlike L2
        else:
            match = config(residual, teacher - so_far)
        if config.ce_on == "none":
            return {"ts": match}
        judged = residual if config.ce_on == "res" else so_far + residual
        return {
            "ts": config.tau * match,
            "ce": (1 - config.tau) * functional.cross_entropy(judged, batch.labels),
        }


def sum_of(stages: tuple[torch.nn.Module, ...], images: Tensor) -> Tensor:
    """S_i: the sum of the stages' logits, (B, K) float32."""
    total: Tensor = stages[0](images).float()
    for stage in stages[1:]:
        total = total + stage(images).float()
    return total
