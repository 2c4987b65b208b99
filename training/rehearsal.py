"""Every network and method of a recipe, made once: what does not fit fails before the first hour, not after it."""

from __future__ import annotations

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
from training.recipe import Recipe, TeacherConfig
from training.run import Run, open_run
from training.start import take_body


@dataclass(frozen=True)
class Actor:
    """A network, the name it is built from, and what of it would be served: the same, unless its method says other."""

    name: str
    net: nn.Module
    deployed: str


def rehearse(recipe: Recipe, folder: Path) -> None:
    """Make every network and method of a recipe.

    Args:
        recipe: checked.
        folder: of the run; a teacher from another run is read from here once it has been taken.

    Raises:
        RecipeError: names the part that does not fit.
    """
    ours = Run(folder, recipe)
    known = {
        step: _of_a_run(step, config, ours)
        for step, config in recipe.teachers_by_step().items()
        if config.run is not None
    }
    size = recipe.data.size
    classes = max((output_shape(actor.net, 3, size, size)[0] for actor in known.values()), default=2)
    stage = _Stage(recipe, classes)
    teachers = [
        known[step] if step in known else stage.teacher(step, config)
        for step, config in recipe.teachers_by_step().items()
    ]
    config = recipe.student
    student = stage.rehearsed("student", config.model, config.method, config.schedule, teachers, start=config.start)
    if recipe.residual is not None:
        if recipe.residual.start == "previous" and student.deployed != student.name:
            raise RecipeError(
                f"residual.start 'previous' hands the student's weights on, and what its method makes of it is another "
                f"network, {student.deployed}: say 'fresh'"
            )
        for model in recipe.residual.models:
            method, schedule = recipe.residual.method, recipe.residual.schedule
            stage.rehearsed("residual", model, method, schedule, teachers, earlier=(student.net,))


def _of_a_run(step: str, config: TeacherConfig, ours: Run) -> Actor:
    """Our copy of it where there is one, because the other run may be gone by now."""
    run = ours if ours.is_done(step) else open_run(Path(config.run or "").expanduser())
    name, net = run.network(step if run is ours else "teacher")
    return Actor(name, net, name)


@dataclass(frozen=True)
class _Stage:
    """Where networks are made: for which images, and how many classes."""

    recipe: Recipe
    classes: int

    def teacher(self, step: str, config: TeacherConfig) -> Actor:
        """A teacher that is trained here, or loaded from a file."""
        assert config.model is not None, "the recipe's validator asks for a model where there is no run"
        return self.rehearsed(step, config.model, config.method, config.schedule, [])

    def rehearsed(
        self,
        part: str,
        model: str,
        method: dict[str, Any] | None,
        schedule: dict[str, Any],
        teachers: list[Actor],
        earlier: tuple[nn.Module, ...] = (),
        start: str | None = None,
    ) -> Actor:
        """One network and its method; a teacher from a file has none."""
        size = self.recipe.data.size
        try:
            net = models.build(model, self.classes, size)
            macs(net, size)
            if start is not None:
                take_body(open_run(Path(start).expanduser()).network("student")[1], net)
            if method is None:
                return Actor(model, net, model)
            kind, config = find(method)
            if kind.needs_start and start is None:
                raise RecipeError(f"method {kind.name!r} trains what comes after a finished body: give student.start")
            nets = [actor.net for actor in teachers]
            batch_size = self.recipe.schedule_for(schedule).batch_size
            data = TrainingSet(torch.arange(2), torch.arange(2), size, batch_size)
            made = kind(config, Networks(net, nets[0] if nets else None, earlier, tuple(nets[1:])), data)
            deployed = made.deployed_name(model, tuple(actor.name for actor in teachers))
            if deployed != model:
                macs(models.build(deployed, self.classes, size), size)
        except RecipeError as error:
            raise RecipeError(f"{part}: {error}") from error
        return Actor(model, net, deployed)
