"""SRRL: the teacher's own classifier says whether the student's representation is right.

Source: Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", 2021 (ICLR), section 3, in
the form that the SimKD benchmark measured: both terms are means of squares, the second one of logits.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig
from training.models.contract import Features


@register("srrl")
class SRRL(Distiller):
    """The student's vector, connected, is the teacher's, and so are the logits that the teacher makes of it."""

    class Config(DistillerConfig):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"simkd": {"weight": 1.0}}
        bench: Literal["crd", "simkd"] = "simkd"

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        assert nets.teacher is not None, "checked at construction"
        if not isinstance(nets.teacher.classifier, nn.Linear):
            raise RecipeError("method 'srrl' reuses the teacher's linear classifier: take a teacher that ends in one")
        self.classifier = (nets.teacher.classifier,)  # in a tuple: no submodule
        student, teacher = self.shapes.vector
        self.connector = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False), nn.BatchNorm2d(teacher), nn.ReLU(), nn.Flatten()
        )

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Of the vectors, and of the logits."""
        vector = self.connector(student.maps[-1][:, :, None, None])
        logits = self.classifier[0](vector)
        return representation_loss(vector, teacher.maps[-1], logits, teacher.logits)


def representation_loss(vector: Tensor, target: Tensor, logits: Tensor, target_logits: Tensor) -> Tensor:
    """`mean (v - t)^2 + mean (W_t v + b_t - z_t)^2`, of vectors (B, C) and logits (B, K)."""
    return functional.mse_loss(vector, target) + functional.mse_loss(logits, target_logits)
