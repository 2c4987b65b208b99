"""One res-student trained by the loop alone, and ways to stop it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from tests.tiny_run import tiny_recipe
from tests.training.networks import frozen
from training import models
from training.data import Data, load
from training.device import Device
from training.log import Log
from training.loop import Step, train
from training.methods.base import Batch, Method, Networks, TrainingSet, find
from training.settings import Schedule

CPU = Device(torch.device("cpu"), torch.float32, channels_last=True, compile=False)
SCHEDULE = {"epochs": 3, "batch_size": 256, "lr": 0.05, "policy": "cosine"}


@functools.cache
def digits() -> Data:
    """1,150 digits to train on, 288 held out."""
    return load(tiny_recipe().data, quiet=True)


class Interrupted(Exception):
    """Stands for a kill."""


class StopsAt(Log):
    """A log in which the run dies after so many batches, or as an epoch ends."""

    def __init__(self, folder: Path, batches: int = 10**9, epochs: int = 10**9) -> None:
        super().__init__(folder, quiet=True)
        self.batches, self.epochs = batches, epochs

    def advance(self, step: str, done: int) -> None:
        super().advance(step, done)
        if done == self.batches:
            raise Interrupted

    def epoch(self, step: str, epoch: int, figures: dict[str, float], images_per_s: float) -> None:
        super().epoch(step, epoch, figures, images_per_s)
        if epoch == self.epochs:
            raise Interrupted


def plan(folder: Path, checkpoint_s: float = 1e-9, run_id: str = "ours", read_s: float = 0.2, **schedule: Any) -> Step:
    """A step that checkpoints after every batch."""
    whole = Schedule.model_validate({**SCHEDULE, **schedule})
    return Step("residual1", 1, run_id, whole, folder / "steps" / "residual1", checkpoint_s, read_s)


def seen(batch_size: int) -> TrainingSet:
    """What a method is told of these digits."""
    return TrainingSet(digits().train.labels, digits().train.index, 8, batch_size)


def method(name: str = "res_kd", **settings: Any) -> Method:
    """A method with fresh networks, the same each time."""
    kind, config = find({"name": name, **settings})
    earlier = (frozen("resnet8_0.125_a", 1, 10),)
    teacher = frozen("resnet8_0.25_a", 2, 10)
    torch.manual_seed(3)
    student = CPU.place(models.build("resnet8_0.125_a", 10))
    return kind(config, Networks(student, teacher, earlier), seen(256))


def trained(folder: Path, log: Log | None = None, step: Step | None = None, how: Method | None = None) -> Method:
    """Train to the end, or to where the log stops it."""
    how = how or method()
    with log or Log(folder, quiet=True) as open_log:
        train(step or plan(folder), how, digits(), CPU, open_log)
    return how


class Listening(Method):
    """A wrapper that writes down what each batch held."""

    name = "listening"
    needs_teacher = False

    def __init__(self, inner: Method) -> None:
        super().__init__(inner.config, inner.nets, inner.data)
        self.heard: list[Batch] = []
        self.inner = [inner]  # in a list: no submodule

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.heard.append(batch)
        return self.inner[0].losses(batch)
