"""CC: correlation congruence, in the form that the CRD benchmark measured.

Source: Peng et al., "Correlation Congruence for Knowledge Distillation", 2019, arXiv 1904.01802, section 3.

Differences: not the Gaussian kernel of the paper but, as in the benchmark's code, the product of absolute
differences of neighbouring samples in the batch. Both embeddings are trained, the teacher's too.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig
from training.models.contract import Features


@register("cc")
class CC(Distiller):
    """Embeddings of neighbouring samples differ little at once."""

    class Config(DistillerConfig):
        """`width`: of the embeddings."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 0.02}}
        width: Annotated[int, Field(gt=0)] = 128

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, teacher = self.shapes.vector
        self.embed_student, self.embed_teacher = nn.Linear(student, config.width), nn.Linear(teacher, config.width)

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Of the two embedded vectors."""
        return correlation_loss(self.embed_student(student.maps[-1]), self.embed_teacher(teacher.maps[-1]))


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean_{b < B} sum_j d_b,j d_{b+1},j` with d = |s - t|, of vectors (B, D)."""
    gap = (student - teacher).abs()
    return (gap[:-1] * gap[1:]).sum(1).mean()
