"""A student's body, a projector, and the last layers of its teacher, as one network.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001 (SimKD),
section 3.2 and table S.1, Eq. 5; SimKD+ and SimKD++ of table S.10 reuse one and two stages of the teacher as well.

    images -> stem and stages of the student -> (smaller maps) -> projector -> what is reused of the teacher -> logits

The projector is 1x1, 3x3, 1x1 convolutions without bias, each with batch norm and ReLU, the last one too: what it has
to match stands behind a ReLU. With r the reduction and m = Ct // r channels inside, it has `Ct (Cs + Ct + 4) / r +
9 Ct^2 / r^2 + 2 Ct` parameters. What the paper leaves open: the hidden width of its two-layer variant is m as well, and
logits of several teachers are averaged, which is one linear layer on all of their vectors.

Names:
    simkd(resnet8x4, resnet32x4)                    student, teacher
    simkd(shufflenetv2, resnet32x4, resnet110x2)    a projector for each of two teachers
    simkd(resnet8x4, resnet32x4; stages=1, reduction=4)    settings of `Reuse` that differ from its defaults
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from cascade.errors import RecipeError
from training import models
from training.models.blocks import Activated, conv_norm
from training.models.contract import GlobalPool, Network, Stage
from training.models.families import family
from training.models.shapes import output_shape
from training.reasons import reasons

Place = tuple[int, int]


class Reuse(BaseModel):
    """What is reused, and how it is reached.

    Attributes:
        reduction: r; the projector has Ct // r channels inside.
        projector: its convolutions; `3x3dw` is depth-wise, as for ImageNet.
        student_map: the map that the student pools, behind its last convolution where it has one beyond its stages, or
            that of its last stage, as the authors' code has it.
        align: match maps, or what is left of them after pooling.
        stages: of the teacher that are reused beside its classifier: 0 is SimKD, 1 SimKD+, 2 SimKD++.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reduction: Annotated[int, Field(ge=1)] = 2
    projector: Literal["1x1-3x3-1x1", "1x1-3x3dw-1x1", "1x1-1x1", "1x1"] = "1x1-3x3-1x1"
    student_map: Literal["pre_pool", "last_stage"] = "pre_pool"
    align: Literal["maps", "vectors"] = "maps"
    stages: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _vectors_end_in_the_classifier(self) -> Self:
        if self.stages and self.align == "vectors":
            raise ValueError("stages of the teacher want maps: say align: maps, or stages: 0")
        return self

    @model_validator(mode="after")
    def _one_map_of_the_student(self) -> Self:
        if self.stages and self.student_map == "last_stage":
            raise ValueError(
                "stages of the teacher take the place of the student's last ones, so student_map says nothing: leave "
                "it out, or say stages: 0"
            )
        return self

    def name(self, student: str, teachers: Sequence[str]) -> str:
        """Of the network, as `models.build` knows it."""
        values = self.model_dump(include=set(Reuse.model_fields), exclude_defaults=True)
        settings = ", ".join(f"{key}={value}" for key, value in values.items())
        return f"simkd({', '.join([student, *teachers])}{'; ' if settings else ''}{settings})"

    def of_student(self, net: Network, images: Tensor) -> Tensor:
        """The student's map that the projector reads, (B, Cs, H, W)."""
        if self.stages == 0 and self.student_map == "pre_pool":
            return net.pre_pool(images)
        return net.run_to(images, len(net.stages) - self.stages)

    def of_teacher(self, net: Network, images: Tensor) -> Tensor:
        """The teacher's map that the projector has to match before any pooling, (B, Ct, H, W)."""
        return net.run_to(images, len(net.stages) - self.stages) if self.stages else net.pre_pool(images)


class PoolTo(nn.Module):
    """Adaptive average pooling of square maps from one size to a smaller one, deterministic on a GPU too.

    Args:
        side: pixels a side.
        wanted: pixels a side of the result, at most as many.
    """

    def __init__(self, side: int, wanted: int) -> None:
        super().__init__()
        self.even = nn.AvgPool2d(side // wanted) if side % wanted == 0 else None
        cell, pixel = torch.arange(wanted)[:, None], torch.arange(side)[None]
        inside = (pixel >= cell * side // wanted) & (pixel < -(-(cell + 1) * side // wanted))
        self.register_buffer("cells", None if self.even else inside / inside.sum(1, keepdim=True))
        self.cells: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, side, side) -> (B, C, wanted, wanted): cell i averages floor(iS/s)..ceil((i+1)S/s)."""
        if self.even is not None:
            pooled: Tensor = self.even(x)
            return pooled
        return self.cells @ x @ self.cells.T


def shrink(side: int, wanted: int) -> nn.Module:
    """Pooling to `wanted` pixels a side where a map has more of them."""
    return PoolTo(side, wanted) if side > wanted else nn.Identity()


def projector(student: int, teacher: int, config: Reuse) -> nn.Sequential:
    """Maps (B, Cs, H, W) -> maps (B, Ct, H, W), none of them negative.

    Raises:
        RecipeError: the reduction leaves no channel.
    """
    inside = teacher // config.reduction
    if inside == 0:
        raise RecipeError(f"reduction {config.reduction} leaves none of {teacher} channels: take {teacher} at most")
    kinds = config.projector.split("-")
    widths = [student, *[inside] * (len(kinds) - 1), teacher]
    layers = []
    for kind, before, after in zip(kinds, widths, widths[1:], strict=False):
        groups = after if kind == "3x3dw" else 1
        layers.append(Activated(conv_norm(before, after, int(kind[0]), groups=groups)))
    return nn.Sequential(*layers)


class Branch(nn.Module):
    """From the student's map to the vector that one teacher's classifier reads.

    Args:
        student: channels and pixels a side of its map.
        teacher: whose layers are reused.
        place: channels and pixels a side of its map.
        config: how.

    Attributes:
        front: (B, Cs, Hs, Hs) -> (B, Ct, H, H), trained.
        tail: (B, Ct, H, H) -> vector (B, Dt), the teacher's own modules.

    Raises:
        RecipeError: the teacher's layers cannot take the student's map.
    """

    def __init__(self, student: Place, teacher: Network, place: Place, config: Reuse) -> None:
        super().__init__()
        (channels, side), (wanted, teacher_side) = student, place
        if config.align == "vectors":
            reader, side, teacher_side = teacher.classifier.in_features, 1, 1
            self.front = nn.Sequential(GlobalPool(), nn.Unflatten(1, (channels, 1, 1)))
            self.front.extend(projector(channels, reader, config))
            self.tail: nn.Module = nn.Flatten()
            return
        self.front = nn.Sequential(shrink(side, teacher_side), *projector(channels, wanted, config))
        reused = teacher.stages[len(teacher.stages) - config.stages :]
        self.tail = nn.Sequential(*([*reused, teacher.head] if config.stages else []), teacher.pool)
        side = min(side, teacher_side)
        try:
            fits = output_shape(self.tail, wanted, side, side) == (teacher.classifier.in_features,)
        except RecipeError:
            fits = False
        if not fits:
            raise RecipeError(
                f"the teacher's last layers cannot take a map of {side} x {side} where they had {teacher_side} x "
                f"{teacher_side}: take a student whose map is that large, or a teacher that ends in global pooling"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cs, Hs, Hs) -> (B, Dt)."""
        vector: Tensor = self.tail(self.front(x))
        return vector


class Branches(nn.Module):
    """Several side by side, their vectors joined."""

    def __init__(self, branches: list[Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cs, Hs, Hs) -> (B, sum of Dt)."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class Reused(Network):
    """The whole: all modules are those of the student and the teachers, but for the projectors.

    Args:
        student: gives stem, stages and head.
        teachers: give what comes after the projectors.
        config: what is reused.
        size: pixels a side of the images.

    Attributes:
        branches: one a teacher.
        student_place: channels and pixels a side of the map that they read.
        teacher_places: of those that they have to match, before any pooling.

    Raises:
        RecipeError: the networks do not fit.
    """

    def __init__(self, student: Network, teachers: Sequence[Network], config: Reuse, size: int) -> None:
        for net in (student, *teachers):
            if not isinstance(net.classifier, nn.Linear):
                raise RecipeError("SimKD wants networks that end in a linear classifier: take another network")
            if config.stages >= len(net.stages):
                raise RecipeError(
                    f"{config.stages} stages of the teacher cannot be reused where a network has {len(net.stages)}: "
                    f"take {len(net.stages) - 1} at most"
                )
        place = place_of(Reading(student, config.of_student), size)
        places = [place_of(Reading(net, config.of_teacher), size) for net in teachers]
        branches = [Branch(place, net, found, config) for net, found in zip(teachers, places, strict=True)]
        classifier = joined([net.classifier for net in teachers])
        whole = config.stages == 0 and config.student_map == "pre_pool"
        stages = [stage for stage in student.stages[: len(student.stages) - config.stages] if isinstance(stage, Stage)]
        super().__init__(
            student.stem,
            stages,
            place[0],
            classifier.out_features,
            head=student.head if whole else None,
            pool=branches[0] if len(branches) == 1 else Branches(branches),
            width=classifier.in_features,
        )
        self.classifier = classifier
        self.branches = tuple(branches)  # in a tuple: they are the pool
        self.student_place, self.teacher_places = place, places


class Reading(nn.Module):
    """A network that gives one of its maps."""

    def __init__(self, net: Network, read: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.read = net, read

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, H, H)."""
        return self.read(self.net, images)


def place_of(reading: Reading, size: int) -> Place:
    """Channels and pixels a side of a map, for images of `size` pixels a side."""
    channels, side, _ = output_shape(reading, 3, size, size)
    return channels, side


def joined(classifiers: list[nn.Linear]) -> nn.Linear:
    """One layer on all vectors side by side that gives the mean of the classifiers' logits; a single one is itself.

    Raises:
        RecipeError: they do not know the same number of classes.
    """
    if len({layer.out_features for layer in classifiers}) > 1:
        known = ", ".join(str(layer.out_features) for layer in classifiers)
        raise RecipeError(f"the teachers know {known} classes: take teachers of the same classes")
    if len(classifiers) == 1:
        return classifiers[0]
    whole = nn.Linear(sum(layer.in_features for layer in classifiers), classifiers[0].out_features)
    whole.weight = nn.Parameter(torch.cat([layer.weight for layer in classifiers], 1) / len(classifiers), False)
    whole.bias = nn.Parameter(torch.stack([layer.bias for layer in classifiers]).mean(0), False)
    return whole


def parsed(settings: Sequence[str], name: str) -> Reuse:
    """Settings as `key=value`.

    Args:
        settings: of `Reuse`.
        name: whose they are, for messages.

    Raises:
        RecipeError: a key or value is none.
    """
    pairs = [setting.partition("=") for setting in settings]
    try:
        return Reuse.model_validate({key: value for key, _, value in pairs})
    except ValidationError as error:
        raise RecipeError(f"{name}: {reasons(error, Reuse)}") from error


@family(
    r"simkd\(([^(),;]+), ([^(),;]+(?:, [^(),;]+)*)(?:; ([^();]*))?\)",
    *("simkd(resnet8x4, resnet32x4)", "simkd(shufflenetv2, resnet32x4, resnet110x2)"),
)
def reused(name: re.Match[str], num_classes: int, size: int) -> nn.Module:
    """simkd(<student>, <teacher>, ...; <settings>).

    Raises:
        RecipeError: no such networks, or they do not fit.
    """
    nets = [models.build(part, num_classes, size) for part in (name[1], *name[2].split(", "))]
    student, *teachers = [net for net in nets if isinstance(net, Network)]
    return Reused(student, teachers, parsed(name[3].split(", ") if name[3] else (), name[0]), size)
