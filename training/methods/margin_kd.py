"""Distillation of maps before a ReLU, by a distance that ends where the ReLU makes all equal.

Source: "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts" (JointRD), 2020, appendix Eq. 5
and section on baselines, "KD(MSE)" and "KD(MSE_ALL)"; margin and distance are those of Heo et al., "A Comprehensive
Overhaul of Feature Distillation", 2019, arXiv 1904.01866, Eq. 4 and 5.

The appendix says MSE and cites that work: `margin` is the default, `plain_mse` the literal reading. The margin comes
from the batch norm of the residual branch alone, not from its sum with the shortcut, as in the released code.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Method, MethodConfig, Networks, TrainingSet, register
from training.methods.distiller import Shape, in_float32, shapes_of
from training.models.contract import Network, Stage

Distance = Literal["margin", "plain_mse"]
LEAST_SHARE = 1e-3  # of a channel's values below zero; with fewer the margin is three deviations
TINY = 1e-12


@register("margin_kd")
class MarginKD(Method):
    """The student's maps, each through a connector, imitate the teacher's."""

    class Config(MethodConfig):
        """`stages`: the last one, or all. `weight`: of the sum over them. `distance`: of two maps."""

        stages: Literal["last", "all"] = "last"
        weight: Annotated[float, Field(gt=0)] = 1e-3
        distance: Distance = "margin"

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, teacher = staged(self.name, "student", nets.student), staged(self.name, "teacher", nets.teacher)
        ours, theirs = (shapes_of(net, data.size)[1:-1] for net in (student, teacher))
        pairs = list(zip(ours, theirs, strict=False))
        if len(student.stages) != len(teacher.stages) or any(one[1:] != other[1:] for one, other in pairs):
            raise RecipeError(
                f"method {self.name!r} compares maps of the same size stage by stage, not those of "
                f"{shown(ours)} and {shown(theirs)}: take a teacher that "
                "makes images smaller where the student does"
            )
        self.first = 0 if config.stages == "all" else len(pairs) - 1
        self.distances = nn.ModuleList(
            MapDistance(one[0], other[0], last_norm(self.name, stage, other[0]), config.distance)
            for (one, other), stage in list(zip(pairs, teacher.stages, strict=True))[self.first :]
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `feature`."""
        student, teacher = self.nets.student, self.nets.teacher
        assert isinstance(student, Network), "checked at construction"
        assert isinstance(teacher, Network), "checked at construction"
        with torch.no_grad():
            targets = teacher.features(batch.images, preact=True).maps[1:-1]
        found = student.features(batch.images, preact=True)
        with in_float32(batch.images):
            pairs = zip(self.distances, found.maps[1:-1][self.first :], targets[self.first :], strict=True)
            total = torch.stack([distance(s.float(), t.float()) for distance, s, t in pairs]).sum()
            labels = functional.cross_entropy(found.logits.float(), batch.labels)
        return {"ce": labels, "feature": self.config.weight * total}


class MapDistance(nn.Module):
    """A connector, which learns with the student and is dropped with it, and the distance behind it.

    Args:
        student: channels of the student's map.
        teacher: channels C of the teacher's.
        norm: the batch norm that the teacher's map comes from.
        distance: as in the recipe.
    """

    margin: Tensor

    def __init__(self, student: int, teacher: int, norm: nn.BatchNorm2d, distance: Distance) -> None:
        super().__init__()
        self.connector = connector(student, teacher)
        self.distance = distance
        self.register_buffer("margin", margins(norm))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of two maps before a ReLU, (B, C', h, w) and (B, C, h, w), both float32."""
        guess: Tensor = self.connector(student)
        if self.distance == "plain_mse":
            return (guess - teacher).square().sum() / len(guess)
        return margin_loss(guess, teacher, self.margin)


def margin_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial L2: where the teacher is off, being further off than it costs nothing; summed, over B.

    Args:
        student: s, (B, C, h, w).
        teacher: t, the same shape, before a ReLU. Above zero it costs `(s - t)^2`; below,
            `max(0, s - max(t, m))^2`.
        margin: m, (C,), none above zero.

    Source: Heo et al., 2019, Eq. 4 and 5.
    """
    gap = student - torch.maximum(teacher, margin[:, None, None])
    return torch.where(teacher > 0, gap, torch.relu(gap)).square().sum() / len(student)


@torch.no_grad()
def margins(norm: nn.BatchNorm2d) -> Tensor:
    """What a channel is on average where it is below zero, were it normal: (C,) float32, none above zero.

    `E[x | x < 0] = mu - sd * phi(mu / sd) / Phi(-mu / sd)`, mu being the norm's bias and sd the size of its weight;
    `-3 sd` where a share of less than 0.001 is below zero.
    """
    mean, deviation = norm.bias.double(), norm.weight.double().abs().clamp_min(TINY)
    ratio = mean / deviation
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    usual = mean - deviation * density / below.clamp_min(LEAST_SHARE)
    return torch.where(below > LEAST_SHARE, usual, -3 * deviation).float()


def connector(channels_in: int, channels_out: int) -> nn.Sequential:
    """1x1 convolution without bias, weights from N(0, sqrt(2 / C)) with C outputs; batch norm."""
    convolution = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / channels_out))
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


def last_norm(method: str, stage: nn.Module, channels: int) -> nn.BatchNorm2d:
    """The batch norm at the end of a stage's last block; one of a shortcut is none.

    Args:
        method: whose messages these are.
        stage: of the teacher.
        channels: of its map.

    Raises:
        RecipeError: no batch norm gives the map its channels.
    """
    assert isinstance(stage, Stage), "networks consist of them"
    layers = [
        module
        for name, module in stage.blocks[-1].named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not {"shortcut", "downsample"} & set(name.split("."))
    ]
    last = layers[-1] if layers else None
    if not isinstance(last, nn.BatchNorm2d) or last.num_features != channels:
        raise RecipeError(
            f"method {method!r} takes its margin from the batch norm that ends the teacher's stage, and there is none "
            f"of {channels} channels: take a ResNet as the teacher"
        )
    return last


def staged(method: str, part: str, net: nn.Module | None) -> Network:
    """The network, which must have stages.

    Raises:
        RecipeError: it has none.
    """
    if not isinstance(net, Network):
        raise RecipeError(f"method {method!r} needs a {part} of stages, and this one has none: see `rescade models`")
    return net


def shown(shapes: list[Shape]) -> str:
    """Maps for a message: 64x8x8, 128x4x4."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
