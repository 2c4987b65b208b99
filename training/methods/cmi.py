"""CMI: contrastive model inversion. The student learns from a pool of images that were made from the teacher alone.

Source: Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", 2021, arXiv 2105.08584; how the
images are made is in `training.synthesis.inversion`. The student's loss is `T^2 KL(teacher || student)` at T = 20, as
in its code: the second term of Eq. 2 of Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022,
arXiv 2203.14001, whose table 7 has the method.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.compiled import uncompiled
from training.methods.base import Batch, register
from training.methods.distiller import Positive
from training.methods.kd import kl
from training.synthesis.base import DataFree, in_eval_mode
from training.synthesis.inversion import Inversion, InversionConfig
from training.synthesis.statistics import refuse_without_norms


class Inverted(DataFree):
    """A method that learns from images which contrastive inversion makes."""

    def synthesize(self) -> Inversion:
        """Inversion of the teacher, against what would be deployed."""
        teacher = self.nets.teacher
        assert teacher is not None, "checked at construction"
        refuse_without_norms(self.name, teacher)
        return Inversion(self.config, self.data, teacher, self.said)

    def said(self, images: Tensor) -> Tensor:
        """The logits of what would be deployed, as it would be."""
        net: nn.Module = self.deployable()
        with in_eval_mode(net), uncompiled():
            logits: Tensor = net(images)
        return logits


@register("cmi")
class CMI(Inverted):
    """The student learns from images that its teacher takes for its data; no data."""

    class Config(InversionConfig):
        """`t`: temperature. Others: how images are made."""

        t: Positive = 20.0

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`kd`."""
        with torch.no_grad():
            target = self.teacher(batch.images)
        return {"kd": kl(self.student(batch.images).float(), target, self.config.t)}
