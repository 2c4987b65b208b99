"""SimKD: the student's map, projected, becomes the teacher's, and the teacher's own classifier reads it.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001, Eq. 2 and 3,
tables 5, 6, S.7 and S.10; the authors' code where the paper leaves things open. Labels are not used. What is deployed,
and its settings, are in `training.models.reused`.

Differences: the paper writes a squared norm of vectors; the authors' code takes the mean over all elements of maps, and
so does this. With several teachers each has its projector, the losses are averaged, and so are the logits; of that the
paper says nothing. A teacher's map that can be negative is refused, because no projector that ends in ReLU reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Method, MethodConfig, Networks, TrainingSet, register
from training.models.contract import Network
from training.models.reused import Reuse, Reused, shrink


@register("simkd")
class SimKD(Method):
    """The student's body and a projector match the teacher's map; the teacher's last layers do the rest."""

    class Config(Reuse, MethodConfig):
        """`loss`: compare maps (`input`), the logits that the teacher makes of them (`output`), or `both`."""

        loss: Literal["input", "output", "both"] = "input"

    takes_several_teachers = True

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        student, *teachers = networks_of(self.name, nets)
        for teacher in teachers:
            _refuse_negative(self.name, config, teacher, data.size)
        try:
            reused = Reused(student, teachers, config, data.size)
        except RecipeError as error:
            raise RecipeError(f"method {self.name!r}: {error}") from error
        side = reused.student_place[1]
        self.fronts = nn.ModuleList(branch.front for branch in reused.branches)
        self.shrinks = nn.ModuleList(shrink(teacher_side, side) for _, teacher_side in reused.teacher_places)
        self.students = (student,)
        self.whole = (reused,)  # in a tuple, as the teachers: what is theirs is no part of a checkpoint
        self.teachers = tuple(teachers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`input` and `output`, whichever are asked for."""
        return self.compared(self.whole[0].pre_pool(batch.images), self.theirs(batch.images))

    @torch.no_grad()
    def theirs(self, images: Tensor) -> list[Tensor]:
        """Each teacher's map before any pooling, (B, Ct, H, W), without gradient."""
        return [self.config.of_teacher(teacher, images) for teacher in self.teachers]

    def compared(self, student: Tensor, theirs: list[Tensor]) -> dict[str, Tensor]:
        """The losses of the student's map (B, Cs, H, W) against the teachers', averaged over these."""
        found: dict[str, list[Tensor]] = {}
        branches = zip(self.teachers, theirs, self.whole[0].branches, self.shrinks, strict=True)
        for teacher, x, branch, smaller in branches:
            with torch.no_grad():
                target = self.target(teacher, smaller, x)
            guess = branch.front(student)
            if self.config.loss != "output":
                found.setdefault("input", []).append(functional.mse_loss(guess.float(), target.float()))
            if self.config.loss != "input":
                wanted, ours = (teacher.classifier(branch.tail(each)).float() for each in (target, guess))
                found.setdefault("output", []).append(functional.mse_loss(ours, wanted))
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def target(self, teacher: Network, smaller: nn.Module, x: Tensor) -> Tensor:
        """What the projector has to match, of the teacher's map; a vector is a map of one pixel. Call under no_grad."""
        target: Tensor = teacher.pool(x)[:, :, None, None] if self.config.align == "vectors" else smaller(x)
        return target

    def trainable(self) -> Iterator[nn.Parameter]:
        """Whatever of the student is deployed, and the projectors."""
        whole = self.whole[0]
        learns = (whole.stem, whole.stages, whole.head, self.fronts)
        return (value for part in learns for value in part.parameters() if value.requires_grad)

    def deployable(self) -> nn.Module:
        """The student's body, the projectors, and what is reused of the teachers."""
        return self.whole[0]

    def deployed_name(self, student: str, teachers: tuple[str, ...]) -> str:
        """Of the whole."""
        name: str = self.config.name(student, teachers)
        return name


def networks_of(method: str, nets: Networks) -> list[Network]:
    """Student and teachers.

    Raises:
        RecipeError: one of them has no maps.
    """
    found = []
    for part, net in (("student", nets.student), *(("teacher", teacher) for teacher in nets.teachers)):
        if not isinstance(net, Network):
            raise RecipeError(
                f"method {method!r} compares maps, and the {part} gives none: take a network of stages, or a method "
                "that needs logits alone, such as kd"
            )
        found.append(net)
    return found


@torch.no_grad()
def _refuse_negative(method: str, config: Reuse, teacher: Network, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator).to(teacher.classifier.weight.device)
    if (config.of_teacher(teacher, images) < 0).any():
        where = f"before its last {config.stages} stages" if config.stages else "before it is pooled"
        raise RecipeError(
            f"method {method!r}: the teacher's map {where} can be negative, and the projector ends in ReLU: take "
            "another number of stages, or a teacher whose map comes out of a ReLU"
        )
