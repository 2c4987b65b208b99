"""SimKD and KD at once: the student keeps a classifier of its own beside the projector and the teacher's.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001, Eq. 4 and
tables S.4 and S.5: `(1 - alpha) L_KD + alpha L_SimKD` with `L_KD = CE + T^2 KL` at T = 4, on the student's own
classifier. Both heads are stored and measured; `deploy` says which one is served. A term without weight is left out,
and its head unlearned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.methods.base import Batch, register
from training.methods.kd import kl
from training.methods.simkd import SimKD


@register("simkd_joint")
class SimKDJoint(SimKD):
    """One body under two heads: its own classifier, and the projector with the teacher's."""

    class Config(SimKD.Config):
        """`alpha`: weight of SimKD, KD has 1 - alpha. `t`: temperature of KD. `deploy`: the head that is served."""

        alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
        t: Annotated[float, Field(gt=0)] = 4.0
        deploy: Literal["teacher", "student"] = "teacher"

    takes_several_teachers = False

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`, `kd`, `input` and `output`, whichever have a weight."""
        alpha, found = self.config.alpha, {}
        x, theirs = self.whole[0].pre_pool(batch.images), self.theirs(batch.images)
        if alpha < 1:
            with torch.no_grad():
                target = self.logits_of_teacher(theirs[0])
            logits = self.own_logits(x)
            found["ce"] = (1 - alpha) * functional.cross_entropy(logits, batch.labels)
            found["kd"] = (1 - alpha) * kl(logits, target, self.config.t)
        if alpha > 0:
            found |= {name: alpha * loss for name, loss in self.compared(x, theirs).items()}
        return found

    def logits_of_teacher(self, x: Tensor) -> Tensor:
        """(B, K) float32, from the map that the projector has to match: the teacher runs once for both losses."""
        (teacher,) = self.teachers
        if self.config.stages == 0:
            return teacher.classify(x).float()
        return teacher.run_from(x, len(teacher.stages) - self.config.stages).float()

    def own_logits(self, x: Tensor) -> Tensor:
        """(B, K) float32 of the student's own head, from the map that the projector reads."""
        (student,) = self.students
        if self.config.stages == 0 and self.config.student_map == "pre_pool":
            return student.classify(x).float()
        return student.run_from(x, len(student.stages) - self.config.stages).float()

    def trainable(self) -> Iterator[nn.Parameter]:
        """The whole student and the projector, as far as a term reaches them."""
        own = self.student.parameters() if self.config.alpha < 1 else super().trainable()
        fronts = self.fronts.parameters() if 0 < self.config.alpha < 1 else ()
        return (value for part in (own, fronts) for value in part if value.requires_grad)

    def heads(self) -> dict[str, nn.Module]:
        """Both networks, by whose classifier they have."""
        return {"teacher": self.whole[0], "student": self.student}

    def deployable(self) -> nn.Module:
        """The one under the head that `deploy` names."""
        return self.heads()[self.config.deploy]

    def other_heads(self) -> dict[str, nn.Module]:
        """The other one."""
        return {name: net for name, net in self.heads().items() if name != self.config.deploy}

    def deployed_name(self, student: str, teachers: tuple[str, ...]) -> str:
        """Of the whole, or the student's own."""
        return self.head_name(self.config.deploy, student, teachers)

    def head_name(self, head: str, student: str, teachers: tuple[str, ...]) -> str:
        """Of either head."""
        return student if head == "student" else super().deployed_name(student, teachers)
