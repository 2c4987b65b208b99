"""PKT: the student's similarities, read as probabilities, are the teacher's.

Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018, arXiv 1803.10837,
section 3, with the cosine kernel. As in the CRD benchmark the mean over the matrix instead of the sum, hence the weight
of 30000; the diagonal is in it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from training.methods.base import Batch, register
from training.methods.distiller import Distiller, DistillerConfig
from training.models.contract import Features

EPSILON = 1e-7


@register("pkt")
class PKT(Distiller):
    """Each sample has the same neighbours for student and teacher."""

    class Config(DistillerConfig):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 30000.0}}

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Of the two vectors."""
        return neighbour_loss(student.maps[-1], teacher.maps[-1])


def neighbour_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean P log((P + eps) / (Q + eps))` over B x B, P of the teacher's vectors (B, D'), Q of the student's (B, D)."""
    p, q = neighbours(teacher), neighbours(student)
    return (p * ((p + EPSILON) / (q + EPSILON)).log()).mean()


def neighbours(x: Tensor) -> Tensor:
    """(B, D) -> (B, B): cosines brought to [0, 1], each row of sum one."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x = torch.where(
        norm > 0, x / (norm + EPSILON), 0.0
    )  # no gradient, instead of ten million times one, for a dead row
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
