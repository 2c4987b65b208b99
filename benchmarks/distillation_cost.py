"""What one training step of each method takes: time, and memory that waits for the backward pass.

Time is the median over whole steps (augmentation, forward passes of student and teacher, backward, optimiser), in
rounds in which every method has its turn, on one thread. A method that makes its own images moves what makes them every
so many batches: its step is the mean over that many. Memory is exact and the same on every machine: the bytes of all
distinct storages that autograd holds at once, those of parameters left out; a teacher that runs without gradients holds
nothing. It is not the peak of the process, which the allocator and the largest convolution's workspace share.
"""

from __future__ import annotations

import time
from collections import Counter
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
from training.synthesis.base import DataFree


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

    Attributes:
        cycle: batches from one time that images are made, or what makes them moves, to the next.
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
        looks = data.preprocess.mean, data.preprocess.std, data.augment
        seen = TrainingSet(data.train.labels, data.train.index, size, schedule.batch_size, *looks)
        self.teachers = teachers
        self.method: Method = kind(
            config, Networks(device.place(self.student), teachers[0], (), tuple(teachers[1:])), seen
        )
        device.place(self.method).train()
        self.cycle: int = self.method.config.student_steps if isinstance(self.method, DataFree) else 1
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

    def steps(self, number: int) -> float:
        """The training steps of a cycle, all their turns; seconds for each."""
        self.wait()
        began = time.perf_counter()
        for place in range(self.cycle):
            self.step(number * self.cycle + place)
        self.wait()
        return (time.perf_counter() - began) / self.cycle

    def step(self, number: int) -> None:
        """One training step, all its turns."""
        batch = self.method.make_batch(lambda: self.batch(number))
        for turn in range(self.method.turns()):
            total = self.losses(replace(batch, turn=turn))
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.optimizer.step()

    def wait(self) -> None:
        """Until a GPU has done all that it was asked for."""
        if self.device.where.type == "cuda":
            torch.cuda.synchronize()

    def held(self) -> int:
        """Bytes that the graphs of one batch hold, the first of a cycle, in its first turn."""
        own = [*self.method.parameters(), *(value for net in self.teachers for value in net.parameters())]
        return held_by(lambda: self.losses(self.method.make_batch(lambda: self.batch(0))), own)

    def helpers(self) -> int:
        """Trainable parameters outside what is deployed."""
        deployed = {id(value) for value in self.method.deployable().parameters()}
        makers = self.method.synthesis.parameters() if isinstance(self.method, DataFree) else ()
        return sum(value.numel() for value in (*self.parameters, *makers) if id(value) not in deployed)


def held_by(forward: Callable[[], Tensor], spared: Iterable[Tensor]) -> int:
    """The most bytes that autograd keeps at once for backward passes, in distinct storages, while `forward` runs.

    Args:
        forward: called once; its result, with its graph, lives to the end. Others may come and go before.
        spared: tensors whose storages do not count.
    """
    storages = _Storages({value.untyped_storage().data_ptr() for value in spared})
    with torch.autograd.graph.saved_tensors_hooks(lambda value: _Kept(storages, value), lambda kept: kept.value):
        total = forward()
    del total
    return storages.most


class _Storages:
    """What all graphs hold at a time, and the most there has been of it, in bytes."""

    def __init__(self, spared: set[int]) -> None:
        self.spared, self.holders = spared, Counter[int]()
        self.now = self.most = 0

    def take(self, place: int, count: int) -> None:
        if place not in self.spared:
            self.holders[place] += 1
            self.now += count * (self.holders[place] == 1)
            self.most = max(self.most, self.now)

    def drop(self, place: int, count: int) -> None:
        if place not in self.spared:
            self.holders[place] -= 1
            self.now -= count * (self.holders[place] == 0)


class _Kept:
    """A tensor in a graph, which goes when the graph does."""

    def __init__(self, storages: _Storages, value: Tensor) -> None:
        storage = value.untyped_storage()
        self.value, self.storages, self.what = value, storages, (storage.data_ptr(), storage.nbytes())
        storages.take(*self.what)

    def __del__(self) -> None:
        self.storages.drop(*self.what)


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
            seconds[name].append(stepper.steps(number))
    return {
        name: Cost(median(seconds[name][warm_up:]), stepper.held(), stepper.helpers())
        for name, stepper in steppers.items()
    }
