"""FT: factor transfer. What the teacher saw, paraphrased; the student's translation of what it saw itself.

Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", 2018, arXiv
1802.04977, section 3. As in the CRD benchmark: at the last map, factors are attention maps `N(mean_c f^2)` (the paper
has the factors themselves) compared by L1, half as many factors as channels, and a paraphraser that learns to restore
the teacher's map in 30 of 240 epochs at a constant 0.01.

Difference: the benchmark has 0.01 there for ResNet and WRN students, and otherwise the main learning rate, which
`init_lr: null` gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.methods.at import attention
from training.methods.base import Batch, Method, Networks, Phase, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig, Positive, features, in_float32
from training.methods.maps import pool_match
from training.models.contract import Features

SLOPE = 0.1


@register("ft")
class FT(Distiller):
    """The student's factors are the teacher's, at the last map."""

    class Config(DistillerConfig):
        """`init_share`: epochs of the paraphraser, of those that follow. `init_lr`: its learning rate."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {"crd": {"weight": 200.0}}
        init_share: Annotated[float, Field(gt=0, le=1)] = 30 / 240
        init_lr: Positive | None = 0.01

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, teacher = (shape[0] for shape in self.shapes.last)
        self.paraphraser = Paraphraser(teacher)
        self.translator = translator(student, max(1, teacher // 2))
        self.first = (Restoring(config, nets, data, self.paraphraser),)  # in a tuple: no submodule

    def phases(self) -> tuple[Phase, ...]:
        """`init`."""
        return (Phase("init", self.first[0], self.config.init_share, self.config.init_lr),)

    def trainable(self) -> Iterator[nn.Parameter]:
        """Student and translator; the paraphraser has learned before."""
        yield from self.student.parameters()
        yield from self.translator.parameters()

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Of the factors."""
        with torch.no_grad():
            factors = self.paraphraser.encoder(teacher.maps[-2])
        return factor_loss(self.translator(student.maps[-2]), factors)


class Restoring(Method):
    """The first phase: the paraphraser learns to restore the teacher's map; the student has no part in it.

    Args:
        config: FT's.
        nets: of which the teacher is looked at.
        data: what it will be trained on.
        paraphraser: what learns.
    """

    name = "ft"

    def __init__(self, config: FT.Config, nets: Networks, data: TrainingSet, paraphraser: Paraphraser) -> None:
        super().__init__(config, nets, data)
        self.paraphraser = paraphraser

    def trainable(self) -> Iterator[nn.Parameter]:
        """The paraphraser."""
        return self.paraphraser.parameters()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`restored`: the mean squared error."""
        with torch.no_grad():
            seen = features(self.nets.teacher, batch.images).maps[-2]
        with in_float32(batch.images):
            return {"restored": functional.mse_loss(self.paraphraser(seen), seen)}


class Paraphraser(nn.Module):
    """Three convolutions to half the channels, and three back, without batch norm.

    Args:
        channels: of the teacher's map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        there = (channels, channels, half, half)
        self.encoder = nn.Sequential(*_layers(nn.Conv2d, there))
        self.decoder = nn.Sequential(*_layers(nn.ConvTranspose2d, there[::-1]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, restored."""
        y: Tensor = self.decoder(self.encoder(x))
        return y


def translator(channels: int, factors: int) -> nn.Sequential:
    """Three convolutions from the student's map (B, C, H, W) to factors (B, F, H, W), each with batch norm."""
    return nn.Sequential(*_layers(nn.Conv2d, (channels, channels, factors, factors), norm=True))


def _layers(kind: Any, widths: tuple[int, ...], *, norm: bool = False) -> Iterator[nn.Module]:
    for before, after in pairwise(widths):
        yield kind(before, after, 3, padding=1)
        if norm:
            yield nn.BatchNorm2d(after)
        yield nn.LeakyReLU(SLOPE)


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean |N(mean_c f_s^2) - N(mean_c f_t^2)|` of factors (B, F, H, W) and (B, F', H', W')."""
    student, teacher = pool_match(student, teacher)
    return (attention(student) - attention(teacher)).abs().mean()
