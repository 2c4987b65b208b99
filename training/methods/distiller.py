"""What the methods share that compare features: labels, KD and a term of their own, weighted as a benchmark has it.

Source: `ce * CE + kd * KD(T=4) + weight * own`, as in the two public benchmarks whose tables everybody compares with.
`crd` is that of Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020, arXiv 1910.10699 (ce 1, kd 0);
`simkd` that of Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001
(ce 1, kd 1, so that labels and KD are its Eq. 2). Where a paper's formula and a benchmark's code differ, the code is
followed, because the published numbers come from it; each module says so.

Everything after the two forward passes is computed in float32, whatever the run's precision.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Method, MethodConfig, Networks, TrainingSet
from training.methods.kd import kl
from training.models.contract import Features, Network

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Shape = tuple[int, ...]


class DistillerConfig(MethodConfig):
    """Weights, and whose defaults they have where they are not given.

    Attributes:
        bench: the benchmark that the defaults come from.
        ce: weight of the labels' term.
        kd: weight of `T^2 KL(teacher || student)`.
        t: its temperature.
        weight: of the method's own term.
    """

    BENCHES: ClassVar[dict[str, dict[str, Any]]]

    bench: Literal["crd", "simkd"] = "crd"
    ce: NonNegative = 1.0
    kd: NonNegative = 0.0
    t: Positive = 4.0
    weight: Positive = 1.0

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_benchmark(cls, given: dict[str, Any]) -> dict[str, Any]:
        bench = given.get("bench", cls.model_fields["bench"].default)
        own = cls.BENCHES.get(bench, {}) if isinstance(bench, str) else {}
        return {"kd": 1.0 if bench == "simkd" else 0.0, **own, **given}

    @model_validator(mode="after")
    def _in_that_benchmark(self) -> Self:
        if self.bench not in self.BENCHES:
            raise ValueError(f"the {self.bench} benchmark has no such method: say bench: {next(iter(self.BENCHES))}")
        return self


class Pair:
    """The shapes of features that a student and a teacher give for one image: maps (C, H, W), and vectors (C,).

    Attributes:
        student, teacher: of every entry of `Features.maps`.
        stages: of the stages' maps, pair by pair; the shorter list wins.
        last: of the last stages' maps.
        vector: channels of the two vectors.
    """

    def __init__(self, student: list[Shape], teacher: list[Shape]) -> None:
        self.student, self.teacher = student, teacher
        self.stages = list(zip(student[1:-1], teacher[1:-1], strict=False))
        self.last = student[-2], teacher[-2]
        self.vector = student[-1][0], teacher[-1][0]


class Distiller(Method):
    """A method that compares the student's features with the teacher's."""

    class Config(DistillerConfig):
        """Nothing of its own; each method says which benchmarks have it."""

    def __init__(self, config: DistillerConfig, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        self.shapes = self.look()

    def look(self, *, preact: bool = False) -> Pair:
        """What features the two networks give.

        Raises:
            RecipeError: one of them gives none.
        """
        assert self.nets.teacher is not None, "checked at construction"
        found = []
        for part, net in (("student", self.student), ("teacher", self.nets.teacher)):
            if not isinstance(net, Network):
                raise RecipeError(
                    f"method {self.name!r} compares features, and the {part} gives none: take a network of stages, "
                    "or a method that needs logits alone, such as kd"
                )
            found.append(shapes_of(net, self.data.size, preact=preact))
        return Pair(*found)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `kd` where they have a weight, and one of the method's name."""
        with torch.no_grad():
            teacher = features(self.nets.teacher, batch.images)
        student = features(self.student, batch.images)
        with in_float32(batch.images):
            found = self.labelled(student.logits, teacher.logits, batch.labels)
            found[self.name] = self.config.weight * self.compare(student, teacher, batch)
        return found

    def logits_alone(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`, and `kd` where it has a weight: of a method whose own term came before."""
        target = None
        if self.config.kd:
            with torch.no_grad():
                target = self.teacher(batch.images)
        return self.labelled(self.student(batch.images).float(), target, batch.labels)

    def labelled(self, logits: Tensor, target: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        """What needs logits alone: `ce` and `kd`, each where it has a weight."""
        config = self.config
        found = {}
        if config.ce:
            found["ce"] = config.ce * functional.cross_entropy(logits, labels)
        if config.kd:
            assert target is not None, "whoever weighs KD asks the teacher"
            found["kd"] = config.kd * kl(logits, target, config.t)
        return found

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The method's own term, a float32 scalar without its weight.

        Args:
            student: float32, with gradient.
            teacher: float32, without.
            batch: where they come from.
        """
        raise NotImplementedError(f"method {self.name!r} must define compare()")


def features(net: nn.Module | None, images: Tensor, *, preact: bool = False) -> Features:
    """A network's features, in float32."""
    assert isinstance(net, Network), "checked at construction"
    found = net.features(images, preact=preact)
    maps = [x.float() for x in found.maps]
    return dataclasses.replace(found, maps=maps, logits=found.logits.float(), pre_pool=found.pre_pool.float())


def in_float32(images: Tensor) -> AbstractContextManager[object]:
    """Switch mixed precision off for a while, where the images' device knows of any."""
    kind = images.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@torch.no_grad()
def shapes_of(net: Network, size: int, *, preact: bool = False) -> list[Shape]:
    """The shape of each of a network's features for one image, without the batch; the network is left as it was."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    found = [tuple(x.shape[1:]) for x in net.features(image, preact=preact).maps]
    for module, mode in modes.items():
        module.training = mode
    return found
