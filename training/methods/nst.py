"""NST: the distribution of the student's channels is the teacher's.

Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219,
section 4: maximum mean discrepancy between channel maps of length one, with the polynomial kernel `(a . b)^2`. At every
stage, as in the CRD benchmark.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from training.methods.base import Batch, register
from training.methods.distiller import Distiller, DistillerConfig
from training.methods.maps import pool_match, unit
from training.models.contract import Features


@register("nst")
class NST(Distiller):
    """Channels of every stage are distributed alike."""

    class Config(DistillerConfig):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 50.0}}

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The sum over stages."""
        pairs = zip(student.maps[1:-1], teacher.maps[1:-1], strict=False)
        return sum((selectivity_loss(s, t) for s, t in pairs), student.logits.new_zeros(()))


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`MMD^2 = K(t, t) + K(s, s) - 2 K(s, t)` of the channels of maps (B, C, H, W) and (B, C', H', W')."""
    student, teacher = (unit(x.flatten(2)) for x in pool_match(student, teacher))
    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def kernel(one: Tensor, other: Tensor) -> Tensor:
    """`mean (a . b)^2` over the batch and every two channels of (B, C, HW) and (B, C', HW)."""
    return (one @ other.transpose(1, 2)).square().mean()
