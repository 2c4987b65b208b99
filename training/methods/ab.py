"""AB: activation boundaries. First the student's neurons learn to be on where the teacher's are, then come the labels.

Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", 2019, arXiv
1811.03233, section 3: the alternative loss. As in the CRD benchmark: 30 of 240 epochs at a constant learning rate in
which stem and stages are trained without labels, then cross-entropy alone; stages weigh 1/4, 1/2, 1, and the sum is
multiplied by 3/1000.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.methods.base import Batch, Networks, Phase, TrainingSet, register
from training.methods.body import BodyPhase
from training.methods.distiller import Distiller, DistillerConfig, Pair, Positive, features, in_float32
from training.methods.fitnet import Regressor

SCALE = 3 / 1000


@register("ab")
class AB(Distiller):
    """Neurons learn when to be on, before there are labels."""

    class Config(DistillerConfig):
        """`margin`: of a neuron from its boundary. `init_share`: epochs of the first phase, of those that follow.

        `weight` is that of the first phase's loss.
        """

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 1.0}}
        margin: Positive = 1.0
        init_share: Annotated[float, Field(gt=0, le=1)] = 30 / 240

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        self.first = (Boundaries(config, nets, data, self.look(preact=True)),)  # in a tuple: no submodule

    def phases(self) -> tuple[Phase, ...]:
        """`init`."""
        return (Phase("init", self.first[0], self.config.init_share),)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`, and `kd` where it has a weight."""
        return self.logits_alone(batch)


class Boundaries(BodyPhase):
    """The first phase.

    Args:
        config: AB's.
        nets: student and teacher.
        data: what it will be trained on.
        shapes: of the features before each stage's last ReLU.
    """

    name = "ab"

    def __init__(self, config: AB.Config, nets: Networks, data: TrainingSet, shapes: Pair) -> None:
        connectors = nn.ModuleList(
            nn.Identity() if student == teacher else Regressor("ab", student, teacher, relu=False)
            for student, teacher in shapes.stages
        )
        super().__init__(config, nets, data, connectors)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ab`."""
        with torch.no_grad():
            teacher = features(self.nets.teacher, batch.images, preact=True).maps[1:-1]
        student = features(self.student, batch.images, preact=True).maps[1:-1]
        count = len(self.connectors)
        total = student[0].new_zeros(())
        with in_float32(batch.images):
            for number, (connector, s, t) in enumerate(zip(self.connectors, student, teacher, strict=False)):
                weight = 2.0 ** (number + 1 - count)
                total = total + weight * boundary_loss(connector(s), t, self.config.margin)
        return {"ab": self.config.weight * SCALE * total}


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared distance of each neuron from its margin, where it is on the wrong side of it; summed, over B.

    Args:
        student: (B, C, H, W) before a ReLU.
        teacher: the same shape; on where above zero.
        margin: m. `(s + m)^2 [s > -m, t <= 0] + (s - m)^2 [s <= m, t > 0]`.
    """
    on = teacher > 0
    too_high = torch.relu(student + margin).square()
    too_low = torch.relu(margin - student).square()
    return torch.where(on, too_low, too_high).sum() / len(student)
