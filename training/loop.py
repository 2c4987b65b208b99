"""The one loop that every method runs in.

A batch is a pure function of (seed, step, epoch, place in the epoch): which samples, which crops, which dropout. A run
that was killed therefore goes on from its last checkpoint and ends with the same weights as one that was not.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from cascade.figures import accuracy, running_sums
from training import checkpoint
from training.data import Batches, Data
from training.device import Device, sent
from training.evaluate import Logits, labels_of, logits_of
from training.log import Log
from training.losses import Losses
from training.methods.base import Batch, Method, Phase
from training.models.dirac import undecayed
from training.pictures import contact_sheet
from training.schedule import learning_rate
from training.settings import Schedule


@dataclass(frozen=True)
class Step:
    """One network to train, wholly described.

    Attributes:
        name: teacher, student, residual1, ...
        seed: of the run.
        run_id: of the recipe; a checkpoint of another recipe is refused.
        schedule: how long and how fast.
        folder: where the checkpoint lies.
        checkpoint_s: seconds between checkpoints inside an epoch.
        read_s: seconds between looks at the losses; a run whose loss is no number goes on for so long and one batch.
    """

    name: str
    seed: int
    run_id: str
    schedule: Schedule
    folder: Path
    checkpoint_s: float
    read_s: float = 0.2

    @property
    def checkpoint(self) -> Path:
        """Where the step goes on from; what its phases made is in it too."""
        return self.folder / "checkpoint.pt"


def before(step: Step, phase: Phase) -> Step:
    """A phase of a step as a step of its own. Its checkpoint stays until the step is done."""
    schedule = step.schedule.model_copy(
        update={
            "epochs": max(1, round(phase.share * step.schedule.epochs)),
            "lr": phase.lr or step.schedule.lr,
            "policy": "step",
            "milestones": (),
            "select": "last",
        }
    )
    return replace(step, name=f"{step.name}.{phase.name}", schedule=schedule, folder=step.folder / phase.name)


def seed_for(*parts: object) -> int:
    """A seed below 2^63 for the given parts; near parts give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def train(
    step: Step, method: Method, data: Data, device: Device, log: Log, after_step: Callable[[], None] | None = None
) -> None:
    """Train the phases of `method`, then what it calls trainable, to the end of the schedule.

    Args:
        step: what to train, and where its checkpoint lies.
        method: its networks are on the device already.
        data: on the device.
        device: precision, memory order, this process among others.
        log: where losses and accuracies go.
        after_step: called whenever the optimiser has moved the weights.

    Raises:
        RecipeError: the loss is not finite, the batch is larger than the training set, or the checkpoint is not ours.
    """
    if not step.checkpoint.exists():
        for phase in method.phases():
            device.place(phase.method)
            train(before(step, phase), phase.method, data, device, log, after_step)
    run = _Run(step, method, data, device)
    if after_step is not None:
        run.optimizer.register_step_post_hook(lambda *_: after_step())
    run.resume()
    log.begin(step.name, step.schedule.epochs * run.batches_per_epoch, run.epoch)
    while run.epoch < step.schedule.epochs:
        run.one_epoch(log)
    run.select()


def parameter_groups(
    parameters: list[nn.Parameter], schedule: Schedule, spared: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """What weight decay shrinks: everything, or only what has more than one dimension; never what is `spared`."""
    never = {id(parameter) for parameter in spared}
    if not schedule.decay_norms:
        never |= {id(parameter) for parameter in parameters if parameter.ndim < 2}
    elif not never:
        return [{"params": parameters}]
    decayed = [parameter for parameter in parameters if id(parameter) not in never]
    kept = [parameter for parameter in parameters if id(parameter) in never]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser its state back, from whatever device that was read to."""
    optimizer.load_state_dict(state)
    for value in optimizer.state.values():
        if "step" in value:
            value["step"] = value["step"].cpu()  # where Adam wants its count of steps, wherever the weights are


class _Run:
    """A step under way: what a checkpoint has to hold, and how to go on from it."""

    def __init__(self, step: Step, method: Method, data: Data, device: Device) -> None:
        schedule = step.schedule
        self.step, self.method, self.data, self.device = step, method, data, device
        self.parameters = list(method.trainable())
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.parameters, schedule, undecayed(method)),
            lr=schedule.lr,
            momentum=schedule.momentum,
            nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.where.type, enabled=device.dtype is torch.float16)
        self.batches = Batches(data.preprocess, device.where)
        self.batches_per_epoch = len(data.train) // schedule.batch_size
        if self.batches_per_epoch == 0:
            raise RecipeError(
                f"schedule.batch_size {schedule.batch_size} is over the {len(data.train)} training samples: lower it"
            )
        if schedule.batch_size % device.world:
            raise RecipeError(
                f"schedule.batch_size {schedule.batch_size} does not divide among {device.world} processes evenly"
            )
        self.path = step.checkpoint
        self.epoch, self.batch = 0, 0
        self.losses = Losses(step.name, 0, step.read_s)
        self.best: dict[str, Any] | None = None
        self.saved_at = time.monotonic()
        self.earlier: Logits | None = None

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        self.device.share(self.method)
        state = checkpoint.load_checkpoint(self.path, self.device.where)
        if state is None:
            return
        if state["run_id"] != self.step.run_id:
            raise RecipeError(f"{self.path} belongs to another recipe: name another --out, or remove it")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, optimizer in self.method.optimizers().items():
            restore(optimizer, state["others"][name])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.losses = Losses(self.step.name, self.epoch, self.step.read_s, state["sums"])
        self.best = state.get("best")

    def save(self) -> None:
        """Write the checkpoint; of weights that a loss which is no number has moved there is none."""
        sums = self.losses.read()
        self.saved_at = time.monotonic()
        self.device.wait()
        if not self.device.first:
            return
        state: dict[str, Any] = {
            "run_id": self.step.run_id,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "others": {name: optimizer.state_dict() for name, optimizer in self.method.optimizers().items()},
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": sums,
            "best": self.best,
        }
        checkpoint.save_checkpoint(self.path, state)
        if (images := self.method.pictures()) is not None:
            checkpoint.write_atomic(self.path.with_name("images.png"), contact_sheet(images))

    def one_epoch(self, log: Log) -> None:
        """The rest of the current epoch, its evaluation on D_v, and its checkpoint."""
        self.method.train()
        started, first = time.perf_counter(), self.batch
        for index in self.order()[first:]:
            self.one_batch(index)
            self.batch += 1
            log.advance(self.step.name, self.epoch * self.batches_per_epoch + self.batch)
            if self.batch < self.batches_per_epoch and self.due():
                self.save()
        sums = self.losses.read()
        seconds = time.perf_counter() - started
        images = (self.batches_per_epoch - first) * self.step.schedule.batch_size
        self.device.share(self.method)
        losses = {name: total / self.batches_per_epoch for name, total in sums.items()}
        figures = {f"loss/{name}": value for name, value in sorted(losses.items())}
        figures |= self.dv_figures()
        self.compare(figures)
        log.epoch(self.step.name, self.epoch + 1, figures, images / max(seconds, 1e-9))
        self.epoch, self.batch = self.epoch + 1, 0
        self.losses = Losses(self.step.name, self.epoch, self.step.read_s)
        self.save()

    def due(self) -> bool:
        """Whether to checkpoint inside the epoch; only alone, since clocks of several processes differ."""
        return self.device.world == 1 and time.monotonic() - self.saved_at > self.step.checkpoint_s

    def order(self) -> list[Tensor]:
        """The sample indices of each batch of this epoch, on the CPU; samples that fill no batch wait for another."""
        generator = torch.Generator().manual_seed(seed_for(self.step.seed, self.step.name, self.epoch))
        places = torch.randperm(len(self.data.train), generator=generator)
        size = self.step.schedule.batch_size
        kept = sent(places[: self.batches_per_epoch * size], self.data.train.index.device)
        return list(self.data.train.index[kept].split(size))

    def one_batch(self, index: Tensor) -> None:
        """The optimiser's step or steps of one batch."""
        schedule, device = self.step.schedule, self.device
        seed = seed_for(self.step.seed, self.step.name, self.epoch, self.batch, device.rank)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        drawn = functools.partial(
            self.batches.augmented, self.data.train, device.slice(index), self.data.augment, generator
        )
        done = (self.epoch * self.batches_per_epoch + self.batch) / (schedule.epochs * self.batches_per_epoch)
        self.pace(learning_rate(schedule, done))
        batch = replace(self.method.make_batch(drawn), epoch=self.epoch)
        for turn in range(self.method.turns()):
            self.one_step(replace(batch, turn=turn))

    def pace(self, lr: float) -> None:
        """Set the learning rates: `lr` for what is trained, and as large a part of their own for those that follow."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for optimizer in self.method.optimizers().values():
            for group in optimizer.param_groups:
                if "initial_lr" in group:
                    group["lr"] = group["initial_lr"] * lr / self.step.schedule.lr

    def one_step(self, batch: Batch) -> None:
        """Losses, gradients, and the optimiser's step; it leaves alone what has no gradient.

        Nothing in it waits for a GPU, but in fp16: there the scaler asks whether a gradient was infinite.
        """
        with self.device.autocast():
            losses = self.method.losses(batch)
        values = torch.stack(list(losses.values()))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(values.sum()).backward()
        self.device.average(self.parameters)
        if self.step.schedule.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.step.schedule.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.add(self.batch, tuple(losses), values)

    def compare(self, figures: dict[str, float]) -> None:
        """Keep the weights if they are the best so far; of equals the first."""
        if self.step.schedule.select == "last":
            return
        merit = figures["dv/accuracy"] if self.step.schedule.select == "dv_accuracy" else -figures["dv/loss"]
        if merit == merit and (self.best is None or merit > self.best["merit"]):
            state = {name: value.detach().clone() for name, value in self.method.state_dict().items()}
            self.best = {"merit": merit, "method": state}

    def select(self) -> None:
        """Go back to the best weights, where the schedule asks for them."""
        if self.best is not None:
            self.method.load_state_dict(self.best["method"])

    def dv_figures(self) -> dict[str, float]:
        """Accuracy on D_v, in [0, 1], of what would be deployed and of other heads; the loss where it counts."""
        total, labels = self.dv_logits(self.method.deployable()), labels_of(self.data.dv)
        figures = {"dv/accuracy": accuracy(total, labels)}
        for name, head in self.method.other_heads().items():
            figures[f"dv/accuracy_{name}"] = accuracy(self.dv_logits(head), labels)
        if self.step.schedule.select == "dv_loss":
            loss = functional.cross_entropy(torch.from_numpy(total).double(), torch.from_numpy(labels))
            figures["dv/loss"] = float(loss)
        return figures

    def dv_logits(self, net: nn.Module) -> Logits:
        """Logits on D_v of a network, added to those of the stages before it."""
        if self.earlier is None and self.method.nets.earlier:
            self.earlier = running_sums(logits_of(self.method.nets.earlier, self.data.dv, self.batches))[-1]
        logits = logits_of([net], self.data.dv, self.batches)[0]
        return logits if self.earlier is None else self.earlier + logits
