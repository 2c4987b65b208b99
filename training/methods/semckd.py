"""SemCKD: each stage of the student learns from those of the teacher that attention finds for it.

Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", 2021, arXiv 2012.03236, section 3, as its own
code and the SimKD benchmark have it: attention comes from the similarities within the batch, so its networks are as
wide as the batch is large. It is not detached: the student is moved through its similarities too.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig, Positive
from training.methods.maps import pool_match, unit
from training.models.contract import Features

FACTOR = 4


@register("semckd")
class SemCKD(Distiller):
    """Every stage imitates every stage, as far as they attend to each other."""

    class Config(DistillerConfig):
        """`soft`: temperature of the attention."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"simkd": {"weight": 400.0}}
        bench: Literal["crd", "simkd"] = "simkd"
        soft: Positive = 1.0

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if data.batch_size < FACTOR:
            raise RecipeError(f"method 'semckd' needs batches of {FACTOR} samples or more, not {data.batch_size}")
        students, teachers = self.shapes.student[1:-1], self.shapes.teacher[1:-1]
        self.queries = nn.ModuleList(Embedding(data.batch_size) for _ in students)
        self.keys = nn.ModuleList(Embedding(data.batch_size) for _ in teachers)
        self.projections = nn.ModuleList(
            nn.ModuleList(projection(student[0], teacher[0]) for teacher in teachers) for student in students
        )

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The attended distances."""
        students, teachers = student.maps[1:-1], teacher.maps[1:-1]
        queries = torch.stack([embed(relations(x)) for embed, x in zip(self.queries, students, strict=True)], 1)
        keys = torch.stack([embed(relations(x)) for embed, x in zip(self.keys, teachers, strict=True)], 1)
        rows = []
        for x, projections in zip(students, self.projections, strict=True):
            assert isinstance(projections, nn.ModuleList), "made so above"
            row = []
            for y, project in zip(teachers, projections, strict=True):
                s, t = pool_match(x, y)
                row.append((project(s) - t).square().flatten(1).mean(1))
            rows.append(torch.stack(row, 1))
        return attended_loss(attention(queries, keys, self.config.soft), torch.stack(rows, 1))


class Embedding(nn.Module):
    """A row of similarities (B,) to a query or key (B // 4,) of length one.

    Args:
        batch_size: B.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        width = batch_size // FACTOR
        self.layers = nn.Sequential(nn.Linear(batch_size, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, B) -> (B, B // 4)."""
        return unit(self.layers(x))


def projection(channels: int, wanted: int) -> nn.Sequential:
    """A student's map (B, C, H, W) to a teacher's (B, C', H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * wanted, 1, bias=False),
        nn.BatchNorm2d(2 * wanted),
        nn.ReLU(),
        nn.Conv2d(2 * wanted, 2 * wanted, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * wanted),
        nn.ReLU(),
        nn.Conv2d(2 * wanted, wanted, 1, bias=False),
    )


def relations(x: Tensor) -> Tensor:
    """`F F^T`: (B, ...) -> (B, B)."""
    rows = x.flatten(1)
    return rows @ rows.T


def attention(queries: Tensor, keys: Tensor, soft: float) -> Tensor:
    """Queries (B, S, D) of the student and keys (B, T, D) of the teacher -> (B, S, T), rows of sum one."""
    return torch.softmax(queries @ keys.transpose(1, 2) / soft, dim=2)


def attended_loss(attended: Tensor, apart: Tensor) -> Tensor:
    """`sum_{b,i,j} attention * distance / (B S)`, both (B, S, T)."""
    return (attended * apart).sum(2).mean()
