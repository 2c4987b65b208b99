"""What one training step of each method takes: time, and memory that waits for the backward pass.

Time is the median over whole steps (augmentation, forward passes of student and teacher, backward, optimiser), in
rounds in which every method has its turn, on one thread. Memory is exact and the same on every machine: the bytes of
all distinct storages that autograd holds when the losses are there, those of parameters left out; the teacher, which
runs without gradients, holds nothing. It is not the peak of the process, which the allocator and the largest
convolution's workspace share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from training import models
from training.data import Batches, Data
from training.device import Device
from training.loop import seed_for
from training.methods.base import Batch, Method, Networks, TrainingSet, find
from training.settings import Schedule


@dataclass(frozen=True)
class Cost:
    """Of one training step: seconds, bytes held for the backward pass, and parameters that only training needs."""

    seconds: float
    held: int
    helpers: int


class Stepper:
    """One method, step by step.

    Args:
        settings: of the method.
        student: name of the network to train.
        teachers: frozen, in eval mode.
        data: what is trained on.
        schedule: for batch size and optimiser.
        device: for precision and memory order.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        student: str,
        teachers: Sequence[nn.Module],
        data: Data,
        schedule: Schedule,
        device: Device,
    ) -> None:
        self.data, self.schedule, self.device = data, schedule, device
        size = data.preprocess.size
        self.student = models.build(student, len(data.classes), size)
        kind, config = find(settings)
        seen = TrainingSet(data.train.labels, data.train.index, size, schedule.batch_size)
        self.method: Method = kind(
            config, Networks(device.place(self.student), teachers[0], (), tuple(teachers[1:])), seen
        )
        device.place(self.method).train()
        self.parameters = list(self.method.trainable())
        self.optimizer = torch.optim.SGD(self.parameters, lr=schedule.lr, momentum=schedule.momentum, nesterov=True)
        self.batches = Batches(data.preprocess, device.where)

    def batch(self, number: int) -> Batch:
        """The batch of a step."""
        generator = torch.Generator().manual_seed(seed_for("cost", number))
        places = torch.randperm(len(self.data.train), generator=generator)[: self.schedule.batch_size]
        index = self.data.train.index[places]
        return self.batches.augmented(self.data.train, index, self.data.augment, generator)

    def losses(self, batch: Batch) -> Tensor:
        """The sum of a batch's losses."""
        with self.device.autocast():
            found = self.method.losses(batch)
        return torch.stack(list(found.values())).sum()

    def step(self, number: int) -> float:
        """One training step, all its turns; seconds."""
        self.wait()
        began = time.perf_counter()
        batch = self.batch(number)
        for turn in range(self.method.turns()):
            total = self.losses(replace(batch, turn=turn))
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.optimizer.step()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Until a GPU has done all that it was asked for."""
        if self.device.where.type == "cuda":
            torch.cuda.synchronize()

    def held(self) -> int:
        """Bytes that the graph of one batch's losses holds, in its first turn."""
        return held_by(lambda: self.losses(self.batch(0)), self.method.parameters())

    def helpers(self) -> int:
        """Trainable parameters outside what is deployed."""
        deployed = {id(value) for value in self.method.deployable().parameters()}
        return sum(value.numel() for value in self.parameters if id(value) not in deployed)


def held_by(forward: Callable[[], Tensor], spared: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass of what `forward` gives.

    Args:
        forward: called once; its result is dropped.
        spared: tensors whose storages do not count.
    """
    own = {value.untyped_storage().data_ptr() for value in spared}
    storages: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        total = forward()  # lives until the storages have been counted, so that no address comes twice
    found = sum(storages.values())
    del total
    return found


def costs(steppers: dict[str, Stepper], rounds: int = 30, warm_up: int = 3) -> dict[str, Cost]:
    """Measure methods in turns.

    Args:
        steppers: by the method's name.
        rounds: that count.
        warm_up: rounds before those.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(warm_up + rounds):
        for name, stepper in steppers.items():
            seconds[name].append(stepper.step(number))
    return {
        name: Cost(median(seconds[name][warm_up:]), stepper.held(), stepper.helpers())
        for name, stepper in steppers.items()
    }
