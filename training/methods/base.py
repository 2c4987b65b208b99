"""What a method is: named losses over a small record of networks.

A method says at most eight things: its `Config`, its `losses`, what is `trainable`, whether the `teacher_learns`, what
is `deployable`, with its `deployed_name` where that is another network than the student, which `phases` come before,
how many `turns` a batch has, with the `own_turn` of what is deployable where that is not the first, and which batches
it learns from.
Drop a module into this package and it is found; nothing else is edited.

The batches are those of the training set, unless `make_batch` says other: a method that makes its own images does so
there, moves what it makes them with by `optimizers` of its own, and may show some as `pictures`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from cascade.errors import RecipeError
from training.reasons import reasons
from training.settings import Augment, Rgb


@dataclass(frozen=True)
class Batch:
    """One augmented training batch.

    Attributes:
        images: (B, 3, H, W) float32, normalised.
        labels: (B,) int64.
        index: (B,) int64, the sample's place in the training set; a memory bank needs it.
        epoch: from 0; weights that change while a method trains are functions of it.
        turn: from 0, below the method's `turns`.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int = 0
    turn: int = 0


@dataclass(frozen=True)
class Networks:
    """The networks that a method is handed.

    Attributes:
        student: the one to train.
        teacher: frozen, in eval mode; None where a recipe has none.
        earlier: the stages before this one, S_0, R_1, ..., frozen, in eval mode.
        more_teachers: those after the first, for methods that learn from several.
    """

    student: nn.Module
    teacher: nn.Module | None = None
    earlier: tuple[nn.Module, ...] = field(default=())
    more_teachers: tuple[nn.Module, ...] = field(default=())

    @property
    def teachers(self) -> tuple[nn.Module, ...]:
        """All of them."""
        return (() if self.teacher is None else (self.teacher,)) + self.more_teachers


@dataclass(frozen=True)
class TrainingSet:
    """What a method is told of the samples that it will see.

    Attributes:
        labels: (N,) int64, of every sample that a `Batch.index` may name.
        index: (M,) int64, those of them that are trained on.
        size: pixels a side.
        batch_size: samples in each batch of one process; every batch is whole.
        mean, std: of a channel, in [0, 1] units; what images are normalised by.
        augment: what happens to a training image before that.
    """

    labels: Tensor
    index: Tensor
    size: int
    batch_size: int
    mean: Rgb = (0.0, 0.0, 0.0)
    std: Rgb = (1.0, 1.0, 1.0)
    augment: Augment = field(default_factory=Augment)


class MethodConfig(BaseModel):
    """Settings of a method: immutable, and unknown keys are errors.

    Attributes:
        NETWORKS: those of the settings that name a file with a network; what is in it counts, not where it lies.
        EPOCHS: those that count epochs, so that a training of other length has others.
        INNER: those that are another method's name and settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    NETWORKS: ClassVar[tuple[str, ...]] = ()
    EPOCHS: ClassVar[tuple[str, ...]] = ()
    INNER: ClassVar[tuple[str, ...]] = ()


class Method(nn.Module):
    """A way to train one network. Helpers that learn too are ordinary submodules.

    Args:
        config: checked settings.
        nets: student, teacher, earlier stages.
        data: what it will be trained on.

    Attributes:
        needs_teacher: whether it cannot do without one.
        teacher_learns: whether it moves the teacher.
        takes_several_teachers: whether it has a use for `Networks.more_teachers`.
        needs_start: whether it wants a student whose body another run has trained.

    Raises:
        RecipeError: the method needs a network that is not there, or cannot work with those that are.
    """

    class Config(MethodConfig):
        """No settings."""

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    teacher_learns: ClassVar[bool] = False
    takes_several_teachers: ClassVar[bool] = False
    needs_start: ClassVar[bool] = False

    def __init__(self, config: Any, nets: Networks, data: TrainingSet) -> None:
        super().__init__()
        if self.needs_teacher and nets.teacher is None:
            raise RecipeError(f"method {self.name!r} needs a teacher, and the recipe has none")
        if nets.more_teachers and not self.takes_several_teachers:
            raise RecipeError(f"method {self.name!r} learns from one teacher, and the recipe has {len(nets.teachers)}")
        self.config = config
        self.nets = nets
        self.data = data
        self.student = nets.student

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, already weighted; the loop adds them."""
        raise NotImplementedError(f"method {self.name!r} must define losses()")

    def trainable(self) -> Iterator[nn.Parameter]:
        """What the optimiser moves; default: whatever of the student and the helpers asks for a gradient."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def deployed_name(self, student: str, teachers: tuple[str, ...]) -> str:
        """The name from which `models.build` makes what is deployable again; default: the student's."""
        return student

    def other_heads(self) -> dict[str, nn.Module]:
        """What else gives logits and is worth measuring beside what is deployable, by name."""
        return {}

    def head_name(self, head: str, student: str, teachers: tuple[str, ...]) -> str:
        """The name from which `models.build` makes one of the `other_heads` again; default: the student's."""
        return student

    def deployable(self) -> nn.Module:
        """Images to logits, as it will be served; default: the student."""
        return self.nets.student

    def turns(self) -> int:
        """How often each batch is asked for its losses, every time followed by a step of what got a gradient."""
        return 1

    def own_turn(self) -> int:
        """The turn in which what is deployable moves."""
        return 0

    def phases(self) -> tuple[Phase, ...]:
        """What is trained before, in order; made when the method is. A phase's method shares modules with this one."""
        return ()

    def make_batch(self, draw: Callable[[], Batch]) -> Batch:
        """What `losses` is given next; default: what `draw` reads from the training set.

        Torch's dice have been thrown anew for this batch, so what is made of them is the same after a resumption.
        """
        return draw()

    def optimizers(self) -> dict[str, Optimizer]:
        """What `make_batch` moves other weights with, by name, for the checkpoint; default nothing.

        A parameter group that says its `initial_lr` follows the schedule: its rate is that times the student's share
        of its own highest. Others keep theirs.
        """
        return {}

    def pictures(self) -> Tensor | None:
        """Images that it made, (N, 3, S, S) in [0, 1], for somebody to look at; None where there are none."""
        return None

    def teacher(self, images: Tensor) -> Tensor:
        """The teacher's logits (B, K) float32.

        Call under no_grad, as whatever else is asked of a teacher. inference_mode is no faster, and what it gives may
        not be saved for a backward pass, so that it fails wherever a layer that learns reads the teacher's maps.
        """
        assert self.nets.teacher is not None, "checked at construction"
        logits: Tensor = self.nets.teacher(images)
        return logits.float()


@dataclass(frozen=True)
class Phase:
    """Training that comes before a method's own: an optimiser of its own, a constant learning rate.

    Attributes:
        name: of the phase.
        method: what is trained; whatever it shares with the method that comes after is where that one begins.
        share: its epochs, as a share of the epochs of the schedule that follows; never less than one.
        lr: the learning rate; None is the schedule's highest.
    """

    name: str
    method: Method
    share: float
    lr: float | None = None


METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a method known by `name`."""

    def add(method: type[Method]) -> type[Method]:
        if name in METHODS:
            raise ValueError(f"two methods are called {name!r}")
        method.name = name
        METHODS[name] = method
        return method

    return add


def find(settings: dict[str, Any]) -> tuple[type[Method], MethodConfig]:
    """The method that `{"name": ..., other settings}` asks for, and its checked settings.

    Raises:
        RecipeError: no such method, or a setting that it does not take.
    """
    import_all()
    name = settings.get("name")
    if name not in METHODS:
        raise RecipeError(f"no method is called {name!r}; there are {', '.join(sorted(METHODS))}")
    method = METHODS[name]
    try:
        return method, method.Config.model_validate({k: v for k, v in settings.items() if k != "name"})
    except ValidationError as error:
        raise RecipeError(f"method {name!r}: {reasons(error, method.Config)}") from error


def stretched(settings: dict[str, Any], factor: float) -> dict[str, Any]:
    """A method's settings for a training of `factor` times the epochs; what counts epochs is 0 only if it was before.

    Raises:
        RecipeError: as `find`.
    """
    _, config = find(settings)
    epochs = {key: getattr(config, key) for key in config.EPOCHS}
    counted = {key: max(1, round(factor * value)) for key, value in epochs.items() if value}
    inner = {key: stretched(settings[key], factor) for key in config.INNER if key in settings}
    return {**settings, **counted, **inner}


def described(config: type[MethodConfig]) -> list[str]:
    """A method's settings and their defaults; then, for each benchmark that it knows, those that differ there."""
    usual = config().model_dump()
    lines = [", ".join(f"{key}={value}" for key, value in usual.items()) or "no settings"]
    for bench in getattr(config, "BENCHES", {}):
        other = config.model_validate({"bench": bench}).model_dump()
        if differ := [f"{key}={value}" for key, value in other.items() if key != "bench" and value != usual[key]]:
            lines.append(f"bench={bench}: {', '.join(differ)}")
    return lines


def import_all() -> None:
    """Import every module of this package, so that each registers its method."""
    package = importlib.import_module("training.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"training.methods.{module.name}")
