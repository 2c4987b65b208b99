"""Every network and method of a recipe, made once: what does not fit fails before the first hour, not after it.

What pruning will leave is not known yet: a designed student is that of the teacher as it is before its rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade.errors import RecipeError
from training import models
from training.methods.base import Networks, TrainingSet, find
from training.models.count import macs
from training.models.shapes import output_shape
from training.pruning import slimming
from training.pruning.cut import kept_of
from training.pruning.design import designed
from training.pruning.magnitude import Masks
from training.recipe import Recipe
from training.run import Run, open_run
from training.settings import DESIGNED, ResidualConfig, SlimmingConfig, TeacherConfig
from training.start import take_body


@dataclass(frozen=True)
class Actor:
    """A network of the recipe.

    Attributes:
        name: it is built from.
        net: itself.
        deployed: what of it would be served: the same, unless its method says other.
        masks: which of its weights earlier pruning left; None where it is whole.
    """

    name: str
    net: nn.Module
    deployed: str
    masks: Masks | None = None


def rehearse(recipe: Recipe, folder: Path) -> None:
    """Make every network and method of a recipe.

    Args:
        recipe: checked.
        folder: of the run; a teacher from another run is read from here once it has been taken.

    Raises:
        RecipeError: names the part that does not fit.
    """
    ours = Run(folder, recipe)
    configs = recipe.teachers_by_step()
    known = {step: _of_a_run(step, config, ours) for step, config in configs.items() if config.run is not None}
    size = recipe.data.size
    classes = max((output_shape(actor.net, 3, size, size)[0] for actor in known.values()), default=2)
    stage = _Stage(recipe, classes)
    teachers = [known[step] if step in known else stage.teacher(step, config) for step, config in configs.items()]
    if recipe.teacher is not None and (prune := recipe.teacher.prune) is not None:
        with _part("teacher.prune"):
            stage.actor(teachers[0].name, teachers[0].net, prune.method, prune.schedule, [])
    student = stage.student(teachers)
    if recipe.residual is not None:
        if recipe.residual.start == "previous" and student.deployed != student.name:
            raise RecipeError(
                f"residual.start 'previous' hands the student's weights on, and what its method makes of it is another "
                f"network, {student.deployed}: say 'fresh'"
            )
        stage.residuals(recipe.residual, teachers, student)


def _of_a_run(step: str, config: TeacherConfig, ours: Run) -> Actor:
    """Our copy of it where there is one, because the other run may be gone by now."""
    run = ours
    if not ours.is_done(step):
        with _part(f"{step}.run"):
            run = open_run(Path(config.run or "").expanduser())
        step = run.teaching(config.step)
    name, net = run.network(step)
    return Actor(name, net, name, run.masks(step))


@dataclass(frozen=True)
class _Stage:
    """Where networks are made: for which images, and how many classes."""

    recipe: Recipe
    classes: int

    def teacher(self, step: str, config: TeacherConfig) -> Actor:
        """A teacher that is trained here, or loaded from a file, which takes no method."""
        assert config.model is not None, "the recipe's validator asks for a model where there is no run"
        with _part(step):
            net = self.network(config.model)
            if config.method is None:
                return Actor(config.model, net, config.model)
            return self.actor(config.model, net, config.method, config.schedule, [])

    def student(self, teachers: list[Actor]) -> Actor:
        """The first student, cut if the recipe says so."""
        config = self.recipe.student
        with _part("student"):
            model = self.design(teachers[0]) if config.model == DESIGNED else config.model
            net = self.network(model)
            started = config.start is not None
            if config.start is not None:
                take_body(open_run(Path(config.start).expanduser()).network("student")[1], net)
            student = self.actor(model, net, config.method, config.schedule, teachers, started=started)
        with _part("student.slim"):
            return self.slimmed(student, config.slim, teachers)

    def residuals(self, config: ResidualConfig, teachers: list[Actor], student: Actor) -> None:
        """Every res-student as the first, cut if the recipe says so."""
        for model in config.models:
            with _part("residual"):
                net, method, earlier = self.network(model), config.method, (student.net,)
                actor = self.actor(model, net, method, config.schedule, teachers, earlier=earlier)
            with _part("residual.slim"):
                self.slimmed(actor, config.slim, teachers, earlier=earlier)

    def slimmed(
        self, actor: Actor, slim: SlimmingConfig | None, teachers: list[Actor], *, earlier: tuple[nn.Module, ...] = ()
    ) -> Actor:
        """A network without some of its channels, if asked for, in the method that trains it on."""
        if slim is None:
            return actor
        net, size = self.network(actor.deployed), self.recipe.data.size
        net = slimming.slim(net, slim.rate, size, floor=slim.floor, shared=slim.shared)
        method, schedule = slim.method, slim.schedule
        return self.actor(actor.deployed, net, method, schedule, teachers, earlier=earlier, started=True)

    def design(self, teacher: Actor) -> str:
        """The student that a teacher asks for."""
        masks = teacher.masks or Masks.whole(teacher.net)
        return designed(teacher.name, teacher.net, masks.counts(teacher.net))

    def network(self, model: str) -> nn.Module:
        """A network, once it has seen an image."""
        net = models.build(model, self.classes, self.recipe.data.size)
        macs(net, self.recipe.data.size)
        return net

    def actor(
        self,
        model: str,
        net: nn.Module,
        method: dict[str, Any],
        schedule: dict[str, Any],
        teachers: list[Actor],
        *,
        earlier: tuple[nn.Module, ...] = (),
        started: bool = False,
    ) -> Actor:
        """A network in its method, and what that would deploy.

        Args:
            model: its name.
            net: itself.
            method: the method's name and settings.
            schedule: what differs from the recipe's.
            teachers: that it learns from.
            earlier: stages before it.
            started: whether its body has been trained.
        """
        kind, config = find(method)
        if kind.needs_start and not started:
            raise RecipeError(f"method {kind.name!r} trains what comes after a finished body: give student.start")
        nets = [actor.net for actor in teachers]
        batch_size = self.recipe.schedule_for(schedule).batch_size
        data = TrainingSet(torch.arange(2), torch.arange(2), self.recipe.data.size, batch_size)
        made = kind(config, Networks(net, nets[0] if nets else None, earlier, tuple(nets[1:])), data)
        deployed = made.deployed_name(model, tuple(actor.name for actor in teachers))
        if deployed != model:
            if kept_of(net) is not None:
                raise RecipeError(
                    f"method {kind.name!r} makes {deployed} of the student, and that name cannot say which channels "
                    "were cut before: take a method that keeps the student as it is"
                )
            self.network(deployed)
        return Actor(model, net, deployed)


@contextmanager
def _part(name: str) -> Iterator[None]:
    """Say in errors which part of the recipe they are about."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error
