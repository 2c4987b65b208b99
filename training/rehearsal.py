"""A recipe tried before it is run: every network and method made once, for images of the recipe's size, two classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from cascade.errors import RecipeError
from training import models
from training.methods.base import Networks, TrainingSet, find
from training.models.count import macs
from training.pruning import slimming
from training.pruning.design import designed
from training.pruning.magnitude import Masks
from training.recipe import (
    DESIGNED,
    MagnitudeConfig,
    NetworkConfig,
    Recipe,
    ResidualConfig,
    SlimmingConfig,
    TeacherConfig,
)
from training.run import Run, open_run

Part = TeacherConfig | MagnitudeConfig | NetworkConfig | SlimmingConfig | ResidualConfig


def rehearse(recipe: Recipe, folder: Path) -> None:
    """Make every network and method once, to fail before the first hour of training, not after it.

    What pruning will leave is not known yet: a designed student is that of the teacher as it is before its rounds.

    Args:
        recipe: checked.
        folder: of the run, which may have begun.

    Raises:
        RecipeError: a part of it does not work; says which.
    """
    size, config = recipe.data.size, recipe.student
    name, teacher, masks = _teacher(recipe, Run(folder, recipe))
    if recipe.teacher is not None and recipe.teacher.prune is not None:
        with _part("teacher.prune"):
            _method(recipe, recipe.teacher.prune, Networks(teacher))
    with _part("student"):
        model = config.model
        if model == DESIGNED:
            model = designed(name, teacher, (masks or Masks.whole(teacher)).counts(teacher))
        given = None if recipe.teacher is None else teacher
        student = _network(model, size)
        _method(recipe, config, Networks(student, given))
    if (slim := config.slim) is not None:
        with _part("student.slim"):
            student = slimming.slim(_network(model, size), slim.rate, size, floor=slim.floor, shared=slim.shared)
            _method(recipe, slim, Networks(student, given))
    if recipe.residual is not None:
        for model in recipe.residual.models:
            with _part("residual"):
                _method(recipe, recipe.residual, Networks(_network(model, size), given, (student,)))


def _teacher(recipe: Recipe, ours: Run) -> tuple[str, nn.Module, Masks | None]:
    """The teacher before our rounds of pruning: its name, itself, and what earlier ones left; a stand-in for none.

    That of another run is our copy of it where there is one, because the other run may be gone by now.
    """
    config = recipe.teacher
    if config is None:
        return "", nn.Identity(), None
    if config.run is not None:
        run, step = ours, "teacher"
        if not ours.is_done(step):
            run = open_run(Path(config.run).expanduser())
            step = run.teaching(config.step)
        return *run.network(step), run.masks(step)
    assert config.model is not None, "the recipe's validator asks for one of run and model"
    with _part("teacher"):
        net = _network(config.model, recipe.data.size)
        _method(recipe, config, Networks(net))
    return config.model, net, None


def _network(model: str, size: int) -> nn.Module:
    """A network, once it has seen an image."""
    net = models.build(model, 2, size)
    macs(net, size)
    return net


def _method(recipe: Recipe, config: Part, nets: Networks) -> None:
    """Make the method of a part that has one."""
    if config.method is not None:
        kind, settings = find(config.method)
        batch_size = recipe.schedule_for(config.schedule).batch_size
        kind(settings, nets, TrainingSet(torch.arange(2), torch.arange(2), recipe.data.size, batch_size))


@contextmanager
def _part(name: str) -> Iterator[None]:
    """Say in errors which part of the recipe they are about."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error
