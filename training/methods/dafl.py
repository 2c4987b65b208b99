"""DAFL: a generator makes images that the teacher is sure of, of all classes alike; the student learns them.

Source: Chen et al., "Data-Free Learning of Student Networks", 2019, arXiv 1904.01186, section 3: the generator lowers
the cross-entropy of the teacher's logits against their own largest, minus the size of the teacher's features, plus the
negative entropy of the mean prediction. The defaults are those of the library that Chen et al., "Knowledge Distillation
with the Reused Teacher Classifier", 2022, arXiv 2203.14001, take for table 7, where one batch of the generator goes
with five of the student; the paper's code has `activation: 0.1`, `entropy: 5` and a student that moves with every batch
of the generator. The student's loss is `KL(teacher || student)` at temperature 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascade.errors import RecipeError
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import NonNegative
from training.methods.kd import kl
from training.models.contract import Network
from training.synthesis.base import DataFree
from training.synthesis.generative import Count, Generative, GenerativeConfig
from training.synthesis.losses import activation_loss, entropy_loss, one_hot_loss


@register("dafl")
class DAFL(DataFree):
    """The student learns from images that its teacher is sure of; no data."""

    class Config(GenerativeConfig):
        """`one_hot`, `activation`, `entropy`: weights of what images are judged by. Others: the generator's."""

        noise: Count = 512
        one_hot: NonNegative = 1.0
        activation: NonNegative = 0.001
        entropy: NonNegative = 20.0

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if not isinstance(nets.teacher, Network):
            raise RecipeError(
                f"method {self.name!r} goes by the vector that the teacher's classifier reads, and the teacher gives "
                "none: take a network of stages, or zskt, which needs logits alone"
            )

    def synthesize(self) -> Generative:
        """A generator."""
        return Generative(self.config, self.data, self.judged)

    def judged(self, images: Tensor) -> Tensor:
        """What the generator lowers."""
        teacher, config = self.nets.teacher, self.config
        assert isinstance(teacher, Network), "checked at construction"
        vector = teacher.pool(teacher.pre_pool(images))
        logits = teacher.classifier(vector).float()
        loss: Tensor = (
            config.one_hot * one_hot_loss(logits)
            + config.activation * activation_loss(vector.float())
            + config.entropy * entropy_loss(logits)
        )
        return loss

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`kd`."""
        with torch.no_grad():
            target = self.teacher(batch.images)
        return {"kd": kl(self.student(batch.images).float(), target, 1.0)}
