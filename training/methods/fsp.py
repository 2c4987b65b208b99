"""FSP: what flows from stage to stage. First the student's maps go together as the teacher's do, then come the labels.

Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
2017, Eq. 1 and 2, section 3.4: the matrix of two maps is `G = mean_hw F_1 F_2^T`, the loss the squared difference of
the teacher's and the student's. As in the CRD benchmark: the matrices of the stem's map and every stage's with the next
one's, the larger map pooled to the smaller, the mean over each matrix, and 30 of 240 epochs in which stem and stages
learn by this alone, at a constant learning rate.

Differences: the benchmark refuses networks of different widths, as the paper does; here the student's map goes through
a 1x1 convolution and batch norm then, which learn with it and are dropped. The benchmark's weight of 50 stands before a
term that its code has at zero once the labels come; `keep` computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from training.methods.base import Batch, Networks, Phase, TrainingSet, register
from training.methods.body import BodyPhase
from training.methods.distiller import Distiller, DistillerConfig, features, in_float32
from training.methods.maps import pool_match
from training.methods.margin_kd import connector
from training.models.contract import Features


@register("fsp")
class FSP(Distiller):
    """Consecutive maps go together as the teacher's do, before there are labels."""

    class Config(DistillerConfig):
        """`init_share`: epochs of the first phase, of those that follow. `keep`: let its term stay, with `weight`.

        The first phase has no other term, so without `keep` there is nothing to weigh.
        """

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 50.0}}
        init_share: Annotated[float, Field(gt=0, le=1)] = 30 / 240
        keep: bool = False

        @model_validator(mode="before")
        @classmethod
        def _something_to_weigh(cls, given: dict[str, Any]) -> dict[str, Any]:
            if "weight" in given and not given.get("keep"):
                raise ValueError("weight is that of the term that stays: say keep: true, or leave weight out")
            return given

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        maps = zip(self.shapes.student[:-1], self.shapes.teacher[:-1], strict=False)
        self.connectors = nn.ModuleList(
            nn.Identity() if student[0] == teacher[0] else connector(student[0], teacher[0])
            for student, teacher in maps
        )
        self.first = (Flows(config, nets, data, self.connectors),)  # in a tuple: no submodule

    def phases(self) -> tuple[Phase, ...]:
        """`init`."""
        return (Phase("init", self.first[0], self.config.init_share),)

    def trainable(self) -> Iterator[nn.Parameter]:
        """The student; the connectors where they are still in use."""
        yield from self.student.parameters()
        if self.config.keep:
            yield from self.connectors.parameters()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`, `kd` where it has a weight, `fsp` where it is kept."""
        return super().losses(batch) if self.config.keep else self.logits_alone(batch)

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The sum over consecutive maps."""
        return flows_loss(connected(self.connectors, student.maps), teacher.maps)


class Flows(BodyPhase):
    """The first phase."""

    name = "fsp"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`fsp`, without a weight."""
        with torch.no_grad():
            teacher = features(self.nets.teacher, batch.images).maps
        student = features(self.student, batch.images).maps
        with in_float32(batch.images):
            return {"fsp": flows_loss(connected(self.connectors, student), teacher)}


def connected(connectors: nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """Each map through its connector, as many as there are connectors."""
    return [connect(x) for connect, x in zip(connectors, maps, strict=False)]


def flows_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """The sum of `flow_loss` over consecutive maps (B, C, H, W), as many as the student has."""
    pairs = zip(pairwise(students), pairwise(teachers), strict=False)
    return torch.stack([flow_loss(student, teacher) for student, teacher in pairs]).sum()


def flow_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """`mean (G_s - G_t)^2` of two maps each, (B, C, ., .) and (B, C', ., .), of sizes that need not agree."""
    return functional.mse_loss(flow(*student), flow(*teacher))


def flow(one: Tensor, other: Tensor) -> Tensor:
    """`G = mean_hw F_1 F_2^T` of maps (B, C, H, W) and (B, C', H', W'), at the size of the smaller: (B, C, C')."""
    one, other = (x.flatten(2) for x in pool_match(one, other))
    return one @ other.transpose(1, 2) / one.shape[2]
