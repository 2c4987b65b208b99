"""A whole recipe: teacher, first student, res-students until the stopping rule holds.

Source: ResKD, Algorithm 1. The loop is do-while: one res-student is always trained, even where the student alone
already meets the rule. Every step is a plain run of `training.loop`; all networks of earlier steps are frozen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade.errors import RecipeError
from cascade.figures import running_sums
from training import checkpoint, models
from training import data as data_module
from training.compiled import compile_helpers, compile_network, uncompiled
from training.data import Batches, Data
from training.device import Device, choose
from training.evaluate import Logits, logits_of, summary
from training.log import Log
from training.loop import Step, seed_for, train
from training.methods.base import Networks, TrainingSet, find
from training.pruning import slimming
from training.pruning.compare import layers
from training.pruning.cut import kept_of
from training.pruning.design import designed
from training.pruning.magnitude import Masks, rounds_for
from training.recipe import Recipe
from training.rehearsal import rehearse
from training.reuse import by_content, step_key, taken
from training.run import Run, create, open_run
from training.settings import DESIGNED, MagnitudeConfig, SlimmingConfig, TeacherConfig
from training.sources import files_digest
from training.start import begin_from, take_body


@dataclass(frozen=True)
class Plan:
    """One network to train, or to take where it is done.

    Attributes:
        step: teacher, teacher_round1, student, residual1, ...
        model: its name.
        method: the method's name and settings.
        schedule: what differs from the recipe's.
        nets: teacher and earlier stages; the student in it is only a placeholder.
        inputs: the steps that it learns from or begins with, in order; teachers come first.
        begin: makes the network to train, where that is not a fresh one; with the masks that hold for it.
        settings: what else its weights depend on.
    """

    step: str
    model: str
    method: dict[str, Any]
    schedule: dict[str, Any]
    nets: Networks
    inputs: tuple[str, ...] = ()
    begin: Callable[[], tuple[nn.Module, Masks | None]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def run_recipe(recipe: Recipe, folder: Path, *, quiet: bool = False, reuse: Sequence[Path] = ()) -> Run:
    """Train everything a recipe asks for, going on where an earlier try was stopped.

    Args:
        recipe: checked.
        folder: of the run.
        quiet: show no progress.
        reuse: other runs, whose steps are taken where nothing before them differs.

    Raises:
        RecipeError: the recipe does not fit the data, the folder, or itself.
    """
    rehearse(recipe, folder)
    others = [open_run(path) for path in reuse]
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
        return _Trainer(Run(folder, recipe), data, device, log, others).everything()


class _Trainer:
    """The steps of one run."""

    def __init__(self, run: Run, data: Data, device: Device, log: Log, others: Sequence[Run]) -> None:
        self.run, self.data, self.device, self.log, self.others = run, data, device, log, others
        self.recipe = run.recipe
        self.classes = len(data.classes)
        self.batches = Batches(data.preprocess, device.where)

    def everything(self) -> Run:
        """Algorithm 1."""
        steps = tuple(self.teacher(step, config) for step, config in self.recipe.teachers_by_step().items())
        teachers = [self.finished(step) for step in steps]
        nets = Networks(nn.Identity(), teachers[0] if teachers else None, more_teachers=tuple(teachers[1:]))
        first = self.student(steps, nets)
        names, stages = [first], [self.finished(first)]
        if self.recipe.residual is not None:
            assert self.recipe.teacher is not None, "the recipe's validator asks for one"
            self.residuals(steps[0], teachers[0], names, stages)
        if self.device.first:
            named = {} if self.recipe.teacher is None else {"teacher": steps[0]}
            checkpoint.write_json(self.run.folder / "cascade.json", {"stages": names, **named})
        self.device.wait()
        return self.run

    def residuals(self, teaching: str, teacher: nn.Module, names: list[str], stages: list[nn.Module]) -> None:
        """Add res-students until the rule holds; always one.

        Args:
            teaching: the teacher's step.
            teacher: what it holds.
            names: steps of the stages so far; grows.
            stages: what they hold; grows.
        """
        config = self.recipe.residual
        assert config is not None, "only called with one"
        teacher_energy = self.dv_summary("T", self.dv_logits(teacher))["energy"]
        while True:
            number = len(stages)
            model = config.models[min(number, len(config.models)) - 1]
            nets = Networks(nn.Identity(), teacher, tuple(stages))
            step = f"residual{number}"
            plan = Plan(step, model, config.method, config.schedule, nets, (teaching, *names))
            if config.start == "previous":
                plan = replace(
                    plan, begin=self.beginning(plan, stages[-1], begin_from), settings={"start": config.start}
                )
            self.network(plan)
            names.append(self.slimmed(plan, config.slim))
            stages.append(self.finished(names[-1]))
            total = running_sums([self.dv_logits(stage) for stage in stages])[-1]
            figures = self.dv_summary(f"S{number}", total)
            self.log.say(
                f"S{number} on D_v: accuracy {figures['accuracy']:.2%}, energy {figures['energy']:.4f}; "
                f"the teacher's energy is {teacher_energy:.4f}"
            )
            if config.stop.done(number, figures["energy"], teacher_energy):
                return

    def beginning(
        self, plan: Plan, start: nn.Module, give: Callable[[nn.Module, nn.Module], None]
    ) -> Callable[[], tuple[nn.Module, None]]:
        """Begins a network from another one's weights, as far as `give` hands them on."""

        def begin() -> tuple[nn.Module, None]:
            net = self.fresh(plan)
            give(start, net)
            return net, None

        return begin

    def start(self, folder: str) -> nn.Module:
        """The finished student of another run."""
        other = open_run(Path(folder).expanduser())
        self.same_data(other, "student.start")
        return other.network("student")[1]

    def student(self, teaching: tuple[str, ...], nets: Networks) -> str:
        """Train the student, and cut its channels if the recipe says so; gives the step that has it.

        Args:
            teaching: the teachers' steps.
            nets: what they hold.
        """
        config = self.recipe.student
        model = config.model if config.model != DESIGNED else self.design(teaching[0])
        plan = Plan("student", model, config.method, config.schedule, nets, teaching)
        if config.start is not None and not self.run.is_done("student"):
            start = self.start(config.start)
            settings = {"start": checkpoint.digest(start)}
            plan = replace(plan, begin=self.beginning(plan, start, take_body), settings=settings)
        self.network(plan)
        return self.slimmed(plan, config.slim)

    def slimmed(self, plan: Plan, slim: SlimmingConfig | None) -> str:
        """Cut the channels of a finished step's network and train on, if asked to; gives the step that has it."""
        if slim is None:
            return plan.step

        def begin() -> tuple[nn.Module, None]:
            size = self.data.preprocess.size
            net = self.run.network(plan.step)[1]
            return slimming.slim(net, slim.rate, size, floor=slim.floor, shared=slim.shared), None

        how = slim.model_dump(mode="json", include={"rate", "floor", "shared"})
        step, model = f"{plan.step}_slim", self.run.figures(plan.step)["model"]
        self.network(Plan(step, model, slim.method, slim.schedule, plan.nets, (*plan.inputs, plan.step), begin, how))
        return step

    def design(self, teaching: str) -> str:
        """The network that the pruned teacher asks for."""
        masks = self.run.masks(teaching)
        if masks is None:
            raise RecipeError(
                f"the teacher of {self.run.folder} was not pruned, so no student follows: name student.model"
            )
        name, net = self.run.network(teaching)
        return designed(name, net, masks.counts(net))

    def teacher(self, step: str, config: TeacherConfig) -> str:
        """Train, take or load a teacher, and prune it if the recipe says so; gives the step whose network teaches."""
        if config.method is not None and config.model is not None:
            nets = Networks(nn.Identity())
            self.network(Plan(step, config.model, config.method, config.schedule, nets))
        elif not self.run.is_done(step):
            name, net, masks = self.given_teacher(config)
            self.device.place(net)
            self.finish(step, net, name, masks=masks)
        return step if config.prune is None else self.pruned(config.prune)

    def pruned(self, config: MagnitudeConfig) -> str:
        """Prune the teacher round by round, training after each; every round's network is kept."""
        step = "teacher"
        for number in range(1, rounds_for(config.sparsity, config.share) + 1):
            previous, step = step, f"teacher_round{number}"
            model = self.run.figures(previous)["model"]
            nets, settings = Networks(nn.Identity()), {"share": config.share}
            begin = functools.partial(self.smaller, previous, config.share)
            self.network(Plan(step, model, config.method, config.schedule, nets, (previous,), begin, settings))
        return step

    def smaller(self, step: str, share: float) -> tuple[nn.Module, Masks]:
        """A step's network as it is, and the masks of the next round."""
        net = self.run.network(step)[1]
        return net, (self.run.masks(step) or Masks.whole(net)).smaller(net, share)

    def given_teacher(self, config: TeacherConfig) -> tuple[str, nn.Module, Masks | None]:
        """A teacher from another run, with its masks, or from a weight file."""
        masks = None
        if config.run is not None:
            other = open_run(Path(config.run).expanduser())
            self.same_data(other, "teacher.run")
            step = other.teaching(config.step)
            name, net = other.network(step)
            masks = other.masks(step)
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
        return name, net, masks

    def same_data(self, other: Run, key: str) -> None:
        """Whatever we take must have seen the same pixels, normalised alike, and none of our test or held-out images.

        Raises:
            RecipeError: its run's data differ.
        """
        configs = (run.recipe.data for run in (self.run, other))
        ours, theirs = (
            {**config.model_dump(exclude={"augment", "root"}), "name": config.source()} for config in configs
        )
        if differ := sorted(key for key in ours if ours[key] != theirs[key]):
            raise RecipeError(
                f"{key} {other.folder} was trained on other data: data.{', data.'.join(differ)} differ; "
                f"train the {key.partition('.')[0]} in this recipe, or make them equal"
            )

    def network(self, plan: Plan) -> nn.Module:
        """Train one network, or take it if it is done, here or in another run; frozen, compiled if asked."""
        if not self.run.is_done(plan.step):
            key = self.key(plan)
            if self.device.first and (other := taken(self.run, plan.step, key, self.others)):
                self.log.say(f"{plan.step}: taken from {other.folder}")
            self.device.wait()
            if not self.run.is_done(plan.step):
                self.train(plan, key)
        return self.finished(plan.step)

    def key(self, plan: Plan) -> str:
        """What the step's weights depend on, as a hash."""
        schedule = self.recipe.schedule_for(plan.schedule).model_dump(mode="json")
        settings = {"model": plan.model, "method": by_content(plan.method), "schedule": schedule, **plan.settings}
        inputs = [self.run.figures(step).get("key") or self.digest(step) for step in plan.inputs]
        return step_key(self.recipe, plan.step, settings, inputs, self.files)

    @functools.cached_property
    def files(self) -> str | None:
        """Which images a folder has."""
        return files_digest(self.recipe.data)

    def digest(self, step: str) -> str:
        """What tells a network's weights from others, where they have no key."""
        return checkpoint.digest(self.run.network(step)[1])

    def fresh(self, plan: Plan) -> nn.Module:
        """A network with random weights."""
        return models.build(plan.model, self.classes, self.data.preprocess.size)

    def train(self, plan: Plan, key: str) -> None:
        """Train one network to the end and store it."""
        torch.manual_seed(seed_for(self.recipe.seed, plan.step, "weights"))
        net, masks = (self.fresh(plan), None) if plan.begin is None else plan.begin()
        self.device.place(net.requires_grad_(requires_grad=True))
        if masks is not None:
            masks = masks.to(self.device.where)
            masks.hold(net)
        kind, config = find(plan.method)
        step = Step(
            plan.step,
            self.recipe.seed,
            self.recipe.run_id(),
            self.recipe.schedule_for(plan.schedule),
            self.run.step(plan.step),
            self.recipe.runtime.checkpoint_s,
        )
        split = self.data.train
        batch_size = step.schedule.batch_size // self.device.world
        rule = self.data.preprocess
        seen = TrainingSet(split.labels, split.index, rule.size, batch_size, rule.mean, rule.std, self.data.augment)
        with torch.random.fork_rng(), uncompiled():
            trained = kind(config, replace(plan.nets, student=net), seen)
        self.device.place(trained)
        if self.device.compile:
            torch._dynamo.reset()
            compile_network(net)
            compile_helpers(trained)
        held = None if masks is None else functools.partial(masks.apply, net)
        train(step, trained, self.data, self.device, self.log, held)
        teachers = [self.run.figures(name)["model"] for name in plan.inputs[: len(plan.nets.teachers)]]
        name = trained.deployed_name(plan.model, tuple(teachers))
        heads = {
            head: (trained.head_name(head, plan.model, tuple(teachers)), other)
            for head, other in trained.other_heads().items()
        }
        self.finish(plan.step, trained.deployable(), name, heads, key=key, masks=masks)

    def finish(
        self,
        step: str,
        net: nn.Module,
        model: str,
        heads: dict[str, tuple[str, nn.Module]] | None = None,
        *,
        key: str | None = None,
        masks: Masks | None = None,
    ) -> None:
        """Store a finished network, its masks and other heads, and the figures of all of them on D_v."""
        figures = self.dv_summary(step, self.dv_logits(net))
        if not math.isfinite(figures["energy"]):
            raise RecipeError(
                f"{step}: the energy on D_v is {figures['energy']} after the last batch: "
                "lower schedule.lr, or set schedule.clip"
            )
        if self.device.first:
            size = self.data.preprocess.size
            noted: dict[str, Any] = {"model": model, "key": key or checkpoint.digest(net), "dv": figures}
            if heads:
                noted["heads"] = {
                    name: self.dv_summary(name, self.dv_logits(head)) for name, (_, head) in heads.items()
                }
            if masks is not None:
                noted["layers"] = [row.model_dump() for row in layers(masks.counts(net))]
            made_again = heads if kept_of(net) is None else None  # a head's name cannot say which channels were cut
            self.run.finish(step, net, model, self.classes, noted, size, masks, made_again)
        self.device.wait()
        self.log.say(f"{step}: {model}: accuracy on D_v {figures['accuracy']:.2%}, energy {figures['energy']:.4f}")

    def finished(self, step: str) -> nn.Module:
        """A step's network, frozen, on the device."""
        return self.ready(self.run.network(step)[1])

    def ready(self, net: nn.Module) -> nn.Module:
        """A finished network, frozen, on the device."""
        net = self.device.place(net).eval().requires_grad_(requires_grad=False)
        if self.device.compile:
            compile_network(net)
        return net

    def dv_logits(self, net: nn.Module) -> Logits:
        """A network's logits on D_v."""
        return logits_of([net], self.data.dv, self.batches)[0]

    def dv_summary(self, name: str, logits: Logits) -> dict[str, Any]:
        """Accuracy and energy on D_v."""
        return summary(name, logits, self.data.dv)
