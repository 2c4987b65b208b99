"""JointRD: a plain network whose early stages learn through the later stages of a ResNet.

Source: "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts", 2020: rebuttal, appendix, and
the released code. With z and F the logits and the last map before its ReLU, path k runs the student's stages up to k
and the teacher's after them, s is the student alone, and

    L = 1/4 [ CE(z_s, y) + lam D_s + m(e) sum_k ( CE(z_k, y) + lam D_k ) ],  D = distance(connector(F), F_t)
    m(e) = dc + (1 - dc) (1 + cos(pi e / 60)) / 2 in epochs e = 0..60, then dc.

ImageNet has lam = 1e-4 and dc = 5e-3. Which path is which number, and the frozen teacher with this objective, are
choices: the code's frozen variant computes the paths and leaves them out of its loss.

`teacher_mode: joint` trains a teacher of its own from random weights beside the student, by its own labels alone. As in
the code it moves first: a batch's first turn is its own, and in the second the paths run through it as it is by then,
with detached weights and its running statistics, against the z_t and F_t of the first. One optimiser moves both, in
each turn only whoever has a gradient; what `schedule.clip` bounds is therefore each one's own.

`kd_mode: during` replaces CE(z_s, y) by `tau t^2 KL + (1 - tau) CE` with the recipe's teacher, or with the second of
two `teachers`; the paths run through the first, or through the one that learns. To finetune a finished student by it
instead, train with method `finetune_kd`. Where a student's stages have other widths than the teacher's,
which the paper's never have, a connector leads over.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training import models
from training.methods.base import Batch, Method, MethodConfig, Networks, TrainingSet, register
from training.methods.count import Count
from training.methods.distiller import in_float32, shapes_of
from training.methods.kd import kl
from training.methods.margin_kd import (
    Distance,
    MapDistance,
    connector,
    last_norm,
    margins,
    shown,
    staged,
)
from training.models.contract import Network

SHARE = 0.25

Share = Annotated[float, Field(ge=0, le=1)]


@register("joint_rd")
class JointRD(Method):
    """The student alone, and its early stages before the teacher's later ones, all judged by labels and last maps."""

    class Config(MethodConfig):
        """What the paper's ablations and data sets differ in.

        Attributes:
            paths: those used; path k leaves the student after its stage k. Default all.
            lam: weight of the distances between last maps.
            floor: dc, what the paths' weight falls to from 1.
            horizon: epochs until it is there; 0 has it there from the start.
            distance: of two maps.
            teacher_mode: `frozen`, or `joint`: a teacher of its own learns beside the student.
            teacher_model: that teacher's name.
            kd_mode: `during` lets the recipe's teacher, the second if there are two, judge the student's logits too.
            path_kd: the same for the paths' logits, with the teacher that they run through.
            tau, t: weight and temperature of those two.
        """

        EPOCHS: ClassVar[tuple[str, ...]] = ("horizon",)

        paths: tuple[int, ...] | None = None
        lam: Annotated[float, Field(ge=0)] = 1e-3
        floor: Share = 0.5
        horizon: Annotated[int, Field(ge=0)] = 60
        distance: Distance = "margin"
        teacher_mode: Literal["frozen", "joint"] = "frozen"
        teacher_model: str | None = None
        kd_mode: Literal["none", "during"] = "none"
        path_kd: bool = False
        tau: Share = 0.9
        t: Annotated[float, Field(gt=0)] = 4.0

        @model_validator(mode="after")
        def _one_teacher(self) -> Self:
            if (self.teacher_mode == "joint") != (self.teacher_model is not None):
                raise ValueError("teacher_mode joint needs the teacher_model that it trains, and frozen takes none")
            return self

    takes_several_teachers = True
    partner: Network | None

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        if nets.more_teachers and (len(nets.teachers), config.teacher_mode, config.kd_mode) != (2, "frozen", "during"):
            raise RecipeError(
                f"method {self.name!r} has a use for a second teacher where kd_mode is 'during' and teacher_mode is "
                f"'frozen', and for no third; the recipe has {len(nets.teachers)}: say so, or give one teacher"
            )
        student, external = staged(self.name, "student", nets.student), nets.teachers[-1] if nets.teachers else None
        if config.teacher_model is not None:
            partner = models.build(config.teacher_model, student.classifier.out_features)
            nets = dataclasses.replace(nets, teacher=partner)
        super().__init__(config, nets, data)
        if config.kd_mode == "during" and external is None:
            raise RecipeError(f"method {self.name!r}: kd_mode 'during' needs a teacher, and the recipe has none")
        teacher = staged(self.name, "teacher", nets.teacher)
        self.partner = None if config.teacher_model is None else teacher
        self.tail, self.external = (Tail(teacher),), (external,)  # in tuples: no submodules
        self.taught: tuple[Tensor, Tensor] | None = None
        ours, theirs = shapes_of(student, data.size)[1:-1], shapes_of(teacher, data.size)[1:-1]
        if [shape[1:] for shape in ours] != [shape[1:] for shape in theirs]:
            raise RecipeError(
                f"method {self.name!r} hands maps from stage to stage, and the student's, {shown(ours)}, are not as "
                f"large as the teacher's, {shown(theirs)}: take a ResNet of as many stages under the same stem"
            )
        self.paths = paths_of(config.paths, len(ours))
        mine, its = [shape[0] for shape in ours], [shape[0] for shape in theirs]
        norm = last_norm(self.name, teacher.stages[-1], its[-1])
        self.norm = (norm,)
        self.bridges, self.distances = nn.ModuleDict(), nn.ModuleDict()
        self.distances["s"] = MapDistance(mine[-1], its[-1], norm, config.distance)
        for path in self.paths:
            channels = mine[path - 1], its[path - 1]
            self.bridges[str(path)] = nn.Identity() if channels[0] == channels[1] else connector(*channels)
            self.distances[str(path)] = MapDistance(its[-1], its[-1], norm, config.distance)
        self.margins_of = Count(self, "margin_epoch", -1)

    def turns(self) -> int:
        """One, or two where a teacher learns: its own comes first."""
        return 1 if self.partner is None else 2

    def own_turn(self) -> int:
        """The last."""
        return self.turns() - 1

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` and `feature` of the student, and the same with each path's number; `teacher_ce` in the turn before."""
        config, images = self.config, batch.images
        if self.partner is not None and batch.turn == 0:
            return {"teacher_ce": self.teach(self.partner, batch)}
        target_map, target = self.targets(images)
        found = {}
        cuts, (last, logits) = self.ask_student(images)
        routes = {path: self.through_teacher(self.bridges[str(path)](cuts[path]), path) for path in self.paths}
        external = self.external_logits(images, target)
        weight = SHARE * penalty(batch.epoch, config.floor, config.horizon)
        with in_float32(images):
            found["ce"] = SHARE * self.judge(logits, batch.labels, external)
            found["feature"] = SHARE * config.lam * self.distances["s"](last.float(), target_map)
            for path, (path_map, path_logits) in routes.items():
                judged = self.judge(path_logits, batch.labels, target if config.path_kd else None)
                found[f"ce_{path}"] = weight * judged
                found[f"feature_{path}"] = weight * config.lam * self.distances[str(path)](path_map.float(), target_map)
        return found

    def teach(self, partner: Network, batch: Batch) -> Tensor:
        """The own loss of a teacher that learns; what it says of this batch is kept for the turn that follows."""
        self.refresh_margins(batch.epoch)
        partner.train(self.training)
        last, logits = finish(partner, partner.stem(batch.images), 0)
        partner.eval()
        self.taught = last.detach().float(), logits.detach().float()
        return functional.cross_entropy(logits.float(), batch.labels)

    def targets(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's last map and its logits, float32 and without gradient."""
        if self.partner is not None:
            assert self.taught is not None, "the teacher's turn comes first"
            return self.taught
        tail = self.tail[0]
        with torch.no_grad():
            last, logits = tail(tail.net.stem(images), 0)
        return last.float(), logits.float()

    def ask_student(self, images: Tensor) -> tuple[dict[int, Tensor], tuple[Tensor, Tensor]]:
        """The maps that the student can be left with, by the stage that made them; its last map and its logits."""
        student = self.nets.student
        assert isinstance(student, Network), "checked at construction"
        x = student.stem(images)
        cuts = {}
        for number, stage in enumerate(student.stages[:-1], start=1):
            x = stage(x)
            cuts[number] = x
        return cuts, finish(student, x, len(student.stages) - 1)

    def through_teacher(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """The teacher's last map and logits from a map after `stage`: the map gets a gradient, the teacher none."""
        tail = self.tail[0]
        weights = {name: parameter.detach() for name, parameter in tail.named_parameters()}
        routed: tuple[Tensor, Tensor] = torch.func.functional_call(tail, weights, (x, stage))
        return routed

    def external_logits(self, images: Tensor, target: Tensor) -> Tensor | None:
        """The logits of the recipe's teacher, where they judge the student."""
        (external,) = self.external
        if self.config.kd_mode == "none":
            return None
        if external is self.tail[0].net:
            return target
        assert external is not None, "checked at construction"
        with torch.no_grad():
            logits: Tensor = external(images)
        return logits.float()

    def judge(self, logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
        """CE, or appendix Eq. 4 where there is a target."""
        config, logits = self.config, logits.float()
        own = functional.cross_entropy(logits, labels)
        return own if target is None else config.tau * kl(logits, target, config.t) + (1 - config.tau) * own

    def refresh_margins(self, epoch: int) -> None:
        """Take the margins of a teacher that learns anew, once an epoch, before it moves."""
        if int(self.margins_of) == epoch:
            return
        found = margins(self.norm[0])
        for distance in self.distances.values():
            assert isinstance(distance, MapDistance), "there are no others"
            distance.margin.copy_(found)
        self.margins_of.put(epoch)


class Tail(nn.Module):
    """A network from any stage on, as a module of its own, so that it can be called with other weights."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """As `finish`."""
        return finish(self.net, x, stage)


def finish(net: Network, x: Tensor, stage: int) -> tuple[Tensor, Tensor]:
    """The last stage's map before its ReLU, (B, C, h, w), and the logits (B, K), from the map after `stage` stages."""
    for part in net.stages[stage:-1]:
        x = part(x)
    x, before = net.stages[-1].both(x)  # type: ignore[operator]
    return net.before_relu(len(net.stages) - 1, before), net.classify(net.head(x))


def penalty(epoch: int, floor: float, horizon: int) -> float:
    """The paths' weight m(e): from 1 in epoch 0 along a cosine to `floor` in epoch `horizon`, and there it stays."""
    if epoch >= horizon:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * epoch / horizon)) / 2


def paths_of(given: tuple[int, ...] | None, stages: int) -> tuple[int, ...]:
    """The paths in use.

    Raises:
        RecipeError: one of them leaves no stage to the student or to the teacher, or is named twice.
    """
    known = tuple(range(1, stages))
    if given is None:
        return known
    if len(set(given)) < len(given) or not set(given) <= set(known):
        raise RecipeError(f"method 'joint_rd': paths are some of {list(known)}, each once, not {list(given)}")
    return given
