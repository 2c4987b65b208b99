"""A whole recipe: teacher, first student, res-students until the stopping rule holds.

Source: ResKD, Algorithm 1. The loop is do-while: one res-student is always trained, even where the student alone
already meets the rule. Every step is a plain run of `training.loop`; all networks of earlier steps are frozen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade.errors import RecipeError
from cascade.figures import running_sums
from training import checkpoint, models
from training import data as data_module
from training.data import Batches, Data
from training.device import Device, choose
from training.evaluate import Logits, logits_of, summary
from training.log import Log
from training.loop import Step, seed_for, train
from training.methods.base import Networks, TrainingSet, find
from training.recipe import Recipe, TeacherConfig
from training.rehearsal import rehearse
from training.run import Run, create, open_run
from training.start import begin_from, take_body


def run_recipe(recipe: Recipe, folder: Path, *, quiet: bool = False) -> Run:
    """Train everything a recipe asks for, going on where an earlier try was stopped.

    Args:
        recipe: checked.
        folder: of the run.
        quiet: show no progress.

    Raises:
        RecipeError: the recipe does not fit the data, the folder, or itself.
    """
    rehearse(recipe, folder)
    device = choose(recipe.runtime)
    if device.first:
        create(folder, recipe)
    device.wait()
    with Log(folder if device.first else None, quiet=quiet) as log:
        if not device.first:
            device.wait()  # a download is for one process
        data = data_module.load(recipe.data, quiet=quiet or not device.first).to(device.where)
        if device.first:
            device.wait()
        return _Trainer(Run(folder, recipe), data, device, log).everything()


class _Trainer:
    """The steps of one run."""

    def __init__(self, run: Run, data: Data, device: Device, log: Log) -> None:
        self.run, self.data, self.device, self.log = run, data, device, log
        self.recipe = run.recipe
        self.classes = len(data.classes)
        self.batches = Batches(data.preprocess, device.where)

    def everything(self) -> Run:
        """Algorithm 1."""
        teachers = [self.teacher(step, config) for step, config in self.recipe.teachers_by_step().items()]
        teacher = teachers[0] if teachers else None
        config = self.recipe.student
        nets = Networks(nn.Identity(), teacher, more_teachers=tuple(teachers[1:]))
        begin = None
        if config.start is not None and not self.run.is_done("student"):
            begin = functools.partial(take_body, self.start(config.start))
        student = self.network("student", config.model, config.method, config.schedule, nets, begin)
        stages = [student]
        if self.recipe.residual is not None:
            assert teacher is not None, "the recipe's validator asks for one"
            stages += self.residuals(teacher, student)
        names = ["student", *(f"residual{number}" for number in range(1, len(stages)))]
        if self.device.first:
            checkpoint.write_json(self.run.folder / "cascade.json", {"stages": names})
        self.device.wait()
        return self.run

    def residuals(self, teacher: nn.Module, student: nn.Module) -> list[nn.Module]:
        """Res-students until the rule holds; always one."""
        config = self.recipe.residual
        assert config is not None, "only called with one"
        teacher_energy = self.dv_summary("T", self.dv_logits(teacher))["energy"]
        stages = [student]
        while True:
            number = len(stages)
            model = config.models[min(number, len(config.models)) - 1]
            nets = Networks(nn.Identity(), teacher, tuple(stages))
            begin = functools.partial(begin_from, stages[-1]) if config.start == "previous" else None
            stages.append(self.network(f"residual{number}", model, config.method, config.schedule, nets, begin))
            total = running_sums([self.dv_logits(stage) for stage in stages])[-1]
            figures = self.dv_summary(f"S{number}", total)
            self.log.say(
                f"S{number} on D_v: accuracy {figures['accuracy']:.2%}, energy {figures['energy']:.4f}; "
                f"the teacher's energy is {teacher_energy:.4f}"
            )
            if config.stop.done(number, figures["energy"], teacher_energy):
                return stages[1:]

    def teacher(self, step: str, config: TeacherConfig) -> nn.Module:
        """Train, take or load a teacher; frozen."""
        if config.method is not None and config.model is not None:
            nets = Networks(nn.Identity())
            return self.network(step, config.model, config.method, config.schedule, nets)
        if not self.run.is_done(step):
            name, net = self.given_teacher(config)
            self.device.place(net)
            self.finish(step, net, name)
        return self.ready(self.run.network(step)[1])

    def start(self, folder: str) -> nn.Module:
        """The finished student of another run."""
        other = open_run(Path(folder).expanduser())
        self.same_data(other, "student.start")
        return other.network("student")[1]

    def given_teacher(self, config: TeacherConfig) -> tuple[str, nn.Module]:
        """A teacher from another run or a weight file."""
        if config.run is not None:
            other = open_run(Path(config.run).expanduser())
            self.same_data(other, "teacher.run")
            name, net = other.network("teacher")
        else:
            assert config.model is not None, "the recipe's validator asks for both"
            assert config.weights is not None, "the recipe's validator asks for both"
            name = config.model
            net = checkpoint.load_weights(
                Path(config.weights).expanduser(), name, self.classes, self.data.preprocess.size
            )
        size = self.data.preprocess.size
        with torch.no_grad():
            outputs = net(torch.zeros(1, 3, size, size)).shape[-1]
        if outputs != self.classes:
            raise RecipeError(f"the teacher {name} knows {outputs} classes, the data has {self.classes}")
        return name, net

    def same_data(self, other: Run, key: str) -> None:
        """Whatever we take must have seen the same pixels, normalised alike, and none of our test or held-out images.

        Raises:
            RecipeError: its run's data differ.
        """
        ours, theirs = (run.recipe.data.model_dump(exclude={"augment", "root"}) for run in (self.run, other))
        if differ := sorted(key for key in ours if ours[key] != theirs[key]):
            raise RecipeError(
                f"{key} {other.folder} was trained on other data: data.{', data.'.join(differ)} differ; "
                f"train the {key.partition('.')[0]} in this recipe, or make them equal"
            )

    def network(
        self,
        step: str,
        model: str,
        method: dict[str, Any],
        schedule: dict[str, Any],
        nets: Networks,
        begin: Callable[[nn.Module], None] | None = None,
    ) -> nn.Module:
        """Train one network, or take it if it is done; frozen, compiled if asked.

        Args:
            step: teacher, student, residual1, ...
            model: its name.
            method: the method's name and settings.
            schedule: what differs from the recipe's.
            nets: teacher and earlier stages; the student in it is only a placeholder.
            begin: gives the fresh network its first weights; default: they are random.
        """
        if not self.run.is_done(step):
            torch.manual_seed(seed_for(self.recipe.seed, step, "weights"))
            net = self.device.place(models.build(model, self.classes, self.data.preprocess.size))
            if begin is not None:
                begin(net)
            if self.device.compile:
                torch._dynamo.reset()
                net.compile()
            kind, config = find(method)
            plan = Step(
                step,
                self.recipe.seed,
                self.recipe.run_id(),
                self.recipe.schedule_for(schedule),
                self.run.step(step),
                self.recipe.runtime.checkpoint_s,
            )
            split = self.data.train
            batch_size = plan.schedule.batch_size // self.device.world
            seen = TrainingSet(split.labels, split.index, self.data.preprocess.size, batch_size)
            with torch.random.fork_rng():
                trained = kind(config, replace(nets, student=net), seen)
            self.device.place(trained)
            train(plan, trained, self.data, self.device, self.log)
            names = self.recipe.teachers_by_step() if nets.teachers else ()
            teachers = tuple(self.run.network(name)[0] for name in names)
            name = trained.deployed_name(model, teachers)
            self.finish(step, trained.deployable(), name, trained.other_heads())
        return self.ready(self.run.network(step)[1])

    def finish(self, step: str, net: nn.Module, model: str, heads: dict[str, nn.Module] | None = None) -> None:
        """Store a finished network and its figures on D_v, and those of its other heads."""
        figures = self.dv_summary(step, self.dv_logits(net))
        if not math.isfinite(figures["energy"]):
            raise RecipeError(
                f"{step}: the energy on D_v is {figures['energy']} after the last batch: "
                "lower schedule.lr, or set schedule.clip"
            )
        if self.device.first:
            size = self.data.preprocess.size
            noted: dict[str, Any] = {"model": model, "dv": figures}
            if heads:
                noted["heads"] = {name: self.dv_summary(name, self.dv_logits(head)) for name, head in heads.items()}
            self.run.finish(step, net, model, self.classes, noted, size)
        self.device.wait()
        self.log.say(f"{step}: {model}: accuracy on D_v {figures['accuracy']:.2%}, energy {figures['energy']:.4f}")

    def ready(self, net: nn.Module) -> nn.Module:
        """A finished network, frozen, on the device."""
        net = self.device.place(net).eval().requires_grad_(requires_grad=False)
        if self.device.compile:
            net.compile()
        return net

    def dv_logits(self, net: nn.Module) -> Logits:
        """A network's logits on D_v."""
        return logits_of([net], self.data.dv, self.batches)[0]

    def dv_summary(self, name: str, logits: Logits) -> dict[str, Any]:
        """Accuracy and energy on D_v."""
        return summary(name, logits, self.data.dv)
