"""RKD: distances and angles between samples agree.

Source: Park et al., "Relational Knowledge Distillation", 2019, arXiv 1904.05068, sections 3.2.1 and 3.2.2; smooth L1 is
the paper's Huber loss. The weights 25 and 50 are the paper's and the CRD benchmark's.

As in the benchmark's code the degenerate pairs and triples are in the means: the diagonal of the distances, and the
triples whose cosine is 0 (a point seen from itself) or 1 (a point with itself). Distances are computed from centred
vectors: their Gram matrix is that much more exact in float32.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.methods.base import Batch, register
from training.methods.distiller import Distiller, DistillerConfig
from training.methods.maps import EPSILON, unit
from training.models.contract import Features

ELEMENTS = 2**22


@register("rkd")
class RKD(Distiller):
    """The batch has the same geometry for student and teacher."""

    class Config(DistillerConfig):
        """`distance`, `angle`: weights of the two parts."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 1.0}}
        distance: Annotated[float, Field(ge=0)] = 25.0
        angle: Annotated[float, Field(ge=0)] = 50.0

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Both parts."""
        s, t = student.maps[-1], teacher.maps[-1]
        total: Tensor = self.config.distance * distance_loss(s, t) + self.config.angle * angle_loss(s, t)
        return total


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean_{i,j} l(d_ij^T - d_ij^S)`, l smooth L1, of the distances of vectors (B, D) and (B, D')."""
    return functional.smooth_l1_loss(distances(student), distances(teacher))


def distances(x: Tensor) -> Tensor:
    """`d_ij = |x_i - x_j| / mu`, mu the mean over all pairs of different samples; (B, D) -> (B, B)."""
    x = x - x.mean(0)
    squares = x.square().sum(1)
    between = (squares[:, None] + squares - 2 * x @ x.T).clamp_min(EPSILON).sqrt()
    between = between * (1 - torch.eye(len(x), device=x.device))
    return between / (between.sum() / (len(x) * (len(x) - 1)))


def angle_loss(student: Tensor, teacher: Tensor, elements: int = ELEMENTS) -> Tensor:
    """`mean_{i,j,k} l(cos_ijk^T - cos_ijk^S)`, l smooth L1, of all B^3 triples of vectors (B, D) and (B, D').

    Args:
        student: (B, D).
        teacher: (B, D').
        elements: how many numbers one tensor may hold. Vertices are taken in blocks of this size, and each block is
            computed again in the backward pass, so that the memory does not grow with B^3.
    """
    count = len(student)
    vertices = max(1, elements // (count * max(count, student.shape[1], teacher.shape[1])))
    total = student.new_zeros(())
    for first in range(0, count, vertices):
        block = slice(first, first + vertices)
        if vertices < count:
            total = total + checkpoint(_angles_apart, student, teacher, block, use_reentrant=False)
        else:
            total = _angles_apart(student, teacher, block)
    return total / count**3


def _angles_apart(student: Tensor, teacher: Tensor, vertices: slice) -> Tensor:
    return functional.smooth_l1_loss(angles(student, vertices), angles(teacher, vertices), reduction="sum")


def angles(x: Tensor, vertices: slice) -> Tensor:
    """`cos_ijk = e_ij . e_ik` with `e_ij = (x_j - x_i) / |x_j - x_i|`, at each vertex i; (B, D) -> (V, B, B)."""
    edges = unit(x[None] - x[vertices, None])
    return edges @ edges.transpose(1, 2)
