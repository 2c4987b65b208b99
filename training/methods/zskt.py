"""ZSKT: a generator looks for images on which student and teacher part; the student learns them.

Source: Micaelli, Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", 2019, arXiv 1905.09768,
section 3: the generator lowers `-KL(T || S)`, the student `KL(T || S)` plus `attention` times the distance of their
attention maps, all at temperature 1. The defaults are those of the library that Chen et al., "Knowledge Distillation
with the Reused Teacher Classifier", 2022, arXiv 2203.14001, take for table 7: no attention, five batches of the student
for one of the generator, Adam at 1e-3. The paper's: `attention: 250`, `student_steps: 10`, `noise: 100`, and a student
of Adam at 2e-3, where ours is moved by SGD as every other.

The generator's rate falls with the student's, as in the paper's code. The library keeps it (`generator_policy:
constant`), and reports the best epoch: once the student's rate is next to nothing, the generator runs away from it.

The distance of attention maps is that of the paper's code, the mean of squares, over all stages. While the generator
moves, the student normalises by the batch, as in either code, and its running statistics go on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cascade.errors import RecipeError
from training.methods.at import attention_loss
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import NonNegative, Positive, features, in_float32
from training.methods.kd import kl
from training.models.contract import Network
from training.synthesis.base import DataFree
from training.synthesis.generative import Generative, GenerativeConfig
from training.synthesis.losses import adversarial_loss


@register("zskt")
class ZSKT(DataFree):
    """The student learns from images on which it is furthest from its teacher; no data."""

    class Config(GenerativeConfig):
        """`adversarial`, `attention`: weights. Others: the generator's, whose rate falls with the student's."""

        generator_policy: Literal["constant", "follow"] = "follow"
        adversarial: Positive = 1.0
        attention: NonNegative = 0.0

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if config.attention and not all(isinstance(net, Network) for net in (nets.student, nets.teacher)):
            raise RecipeError(
                f"method {self.name!r} compares maps where attention has a weight, and a network gives none: take "
                "networks of stages, or attention: 0"
            )

    def synthesize(self) -> Generative:
        """A generator."""
        return Generative(self.config, self.data, self.judged)

    def judged(self, images: Tensor) -> Tensor:
        """What the generator lowers."""
        student: Tensor = self.student(images).float()
        loss: Tensor = self.config.adversarial * adversarial_loss(student, self.teacher(images))
        return loss

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`kd`, and `attention` where it has a weight."""
        if not self.config.attention:
            with torch.no_grad():
                target = self.teacher(batch.images)
            return {"kd": kl(self.student(batch.images).float(), target, 1.0)}
        with torch.no_grad():
            theirs = features(self.nets.teacher, batch.images)
        ours = features(self.student, batch.images)
        with in_float32(batch.images):
            pairs = zip(ours.maps[1:-1], theirs.maps[1:-1], strict=False)
            apart = torch.stack([attention_loss(s, t) for s, t in pairs]).sum()
            return {"kd": kl(ours.logits, theirs.logits, 1.0), "attention": self.config.attention * apart}
