"""AT: attention transfer. The student looks where the teacher looks.

Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", 2017, arXiv 1612.03928, Eq. 2 with
`F(A) = sum_c |A_c|^2`.

Differences, as in both benchmarks: the mean of squares over batch and pixels instead of a norm, hence the weight of
1000; the mean over channels instead of the sum, which the normalisation cancels.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from training.methods.base import Batch, register
from training.methods.distiller import Distiller, DistillerConfig
from training.methods.maps import pool_match, unit
from training.models.contract import Features


@register("at")
class AT(Distiller):
    """Attention maps of every stage agree."""

    class Config(DistillerConfig):
        """Nothing of its own."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 1000.0}, "simkd": {"weight": 1000.0}}

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The sum over stages."""
        pairs = zip(student.maps[1:-1], teacher.maps[1:-1], strict=False)
        return sum((attention_loss(s, t) for s, t in pairs), student.logits.new_zeros(()))


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean_{b,hw} (N(a_s) - N(a_t))^2`, a = mean_c f^2, of maps (B, C, H, W) and (B, C', H', W')."""
    student, teacher = pool_match(student, teacher)
    return (attention(student) - attention(teacher)).square().mean()


def attention(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW), each row of length one."""
    return unit(x.square().mean(1).flatten(1))
