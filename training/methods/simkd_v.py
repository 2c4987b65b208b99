"""SimKD on vectors: one linear map a teacher, which ends up inside one ordinary classifier.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001, section
4.4 and table 6 (SimKD_v). With vectors v_s of the student and v_m of teacher m, whose classifier is (W_m, b_m), the
loss is `mean_m MSE(A_m v_s + a_m, v_m)`. The mean of the teachers' logits is linear in v_s: `W = mean_m W_m A_m`, `b =
mean_m (W_m a_m + b_m)`, and that is the student's classifier. Nothing is added to the student.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.methods.base import Batch, Method, Networks, TrainingSet, register
from training.methods.simkd import networks_of
from training.models.reused import joined


@register("simkd_v")
class SimKDv(Method):
    """Linear maps match the teachers' vectors; their classifiers are merged into the student's."""

    takes_several_teachers = True

    def __init__(self, config: Method.Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, *teachers = networks_of(self.name, nets)
        self.merged = (joined([teacher.classifier for teacher in teachers]),)
        self.body, self.teachers = (student,), tuple(teachers)
        width = student.classifier.in_features
        self.maps = nn.ModuleList(nn.Linear(width, teacher.classifier.in_features) for teacher in teachers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`vector`."""
        (net,) = self.body
        student = net.pool(net.pre_pool(batch.images))
        found = []
        for teacher, linear in zip(self.teachers, self.maps, strict=True):
            with torch.no_grad():
                target = teacher.pool(teacher.pre_pool(batch.images))
            found.append(functional.mse_loss(linear(student).float(), target.float()))
        return {"vector": torch.stack(found).mean()}

    def trainable(self) -> Iterator[nn.Parameter]:
        """All of the student but its classifier, and the linear maps."""
        own = set(self.body[0].classifier.parameters())
        return (value for value in self.parameters() if value.requires_grad and value not in own)

    @torch.no_grad()
    def deployable(self) -> nn.Module:
        """The student, its classifier made anew of the maps and the teachers' classifiers."""
        classifier, (merged,) = self.body[0].classifier, self.merged
        weight, bias = (torch.cat([getattr(linear, key) for linear in self.maps]) for key in ("weight", "bias"))
        classifier.weight.copy_(merged.weight @ weight)
        classifier.bias.copy_(merged.weight @ bias + merged.bias)
        return self.student
