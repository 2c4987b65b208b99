"""SP: what is similar to the teacher is similar to the student.

Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv 1907.09682, Eq. 2-4; only the last map,
as both benchmarks have it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from training.methods.base import Batch, register
from training.methods.distiller import Distiller, DistillerConfig
from training.methods.maps import unit
from training.models.contract import Features


@register("sp")
class SP(Distiller):
    """Similarities within the batch agree, at the last map."""

    class Config(DistillerConfig):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 3000.0}, "simkd": {"weight": 3000.0}}

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Of the last stages' maps."""
        return similarity_loss(student.maps[-2], teacher.maps[-2])


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`sum (G_t - G_s)^2 / B^2` with G = F F^T, its rows of length one, F (B, ...) flattened."""
    return (similarities(student) - similarities(teacher)).square().mean()


def similarities(x: Tensor) -> Tensor:
    """(B, ...) -> (B, B), each row of length one."""
    rows = x.flatten(1)
    return unit(rows @ rows.T)
