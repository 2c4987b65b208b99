"""Images a second of our training loop beside a plain one: torchvision's transforms in a DataLoader, and SGD.

    python benchmarks/training_loop.py --model resnet8_a --model resnet20_a

Both train the same network with cross-entropy, the same optimiser and the same crops and flips, on the same random
pixels, which are as good as real ones for this. The loops take turns, an epoch each, after one epoch that is not
counted; figures are medians over the rounds. An epoch's time is that of its batches alone: neither evaluation nor
checkpoints, nor the start of workers, which live on from epoch to epoch. Runs on the GPU where there is one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cascade.manifest import Preprocess
from training import models
from training.compiled import compile_network
from training.data import Data, Split
from training.device import Device, choose
from training.log import Log
from training.loop import Step, train
from training.methods.base import Networks, TrainingSet, find
from training.settings import Augment, Runtime, Schedule

CLASSES, SIDE, PAD = 10, 32, 4
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
OPTIMISER = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}

Epoch = Callable[[], float]


@click.command()
@click.option("--model", "names", multiple=True, default=("resnet8_a", "resnet20_a"), show_default=True)
@click.option("--images", default=5120, show_default=True, help="Training images.")
@click.option("--batch", default=128, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--workers", multiple=True, type=int, default=(0, 2), show_default=True, help="Of the DataLoader.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Also our loop with torch.compile.")
def main(
    names: tuple[str, ...],
    images: int,
    batch: int,
    rounds: int,
    workers: tuple[int, ...],
    precision: str,
    *,
    compiled: bool,
) -> None:
    """Print images a second of every loop, and how many times the first DataLoader's that is."""
    settings = Runtime.model_validate({"precision": precision, "deterministic": False})
    device = choose(settings)
    data = random_data(images, batch).to(device.where)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            loops = {f"DataLoader, {count} workers": plain(name, data, batch, count, device) for count in workers}
            loops["ours"] = ours(name, data, batch, device, Path(folder) / "plain")
            if compiled:
                quicker = choose(settings.model_copy(update={"compile": True}))
                loops["ours, compiled"] = ours(name, data, batch, quicker, Path(folder) / "compiled")
            found = measured(loops, rounds)
        first = next(iter(found.values()))
        title = f"{name}, {device.where}, {precision}, batch {batch}, {images:,} images, {rounds} rounds"
        table = Table("loop", "images/s", "of the first", title=f"{title}, {torch.get_num_threads()} threads")
        for loop, rate in found.items():
            table.add_row(loop, f"{rate:,.0f}", f"{rate / first:.2f}x")
        Console().print(table)


def measured(loops: dict[str, Epoch], rounds: int) -> dict[str, float]:
    """Images a second of each loop, the median over rounds in which every one has its turn."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, epoch in loops.items():
            rate = epoch()
            if turn:
                rates[name].append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def random_data(count: int, held_out: int) -> Data:
    """Random pixels and labels; what is held out is small, since nobody asks about it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count + held_out, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count + held_out,), generator=generator)
    places = torch.arange(count + held_out)
    train_split, dv = Split(pixels, labels, places[:count]), Split(pixels, labels, places[count:])
    names = tuple(map(str, range(CLASSES)))
    return Data(names, Preprocess(size=SIDE, mean=MEAN, std=STD), train_split, dv, dv, Augment(pad=PAD, flip=True))


def ours(name: str, data: Data, batch: int, device: Device, folder: Path) -> Epoch:
    """One epoch of `training.loop`, as `rescade train` runs it."""
    net = device.place(models.build(name, CLASSES, SIDE))
    if device.compile:
        compile_network(net)
    kind, config = find({"name": "vanilla"})
    split = data.train
    method = kind(config, Networks(net), TrainingSet(split.labels, split.index, SIDE, batch))
    schedule = Schedule.model_validate({"epochs": 1, "batch_size": batch, "milestones": [], **OPTIMISER})
    turns = iter(range(10**6))

    def epoch() -> float:
        step = Step(f"turn{next(turns)}", 1, "benchmark", schedule, folder / "steps", 1e9)
        log = Rate()
        with log:
            train(step, method, data, device, log)
        step.checkpoint.unlink()
        return log.images_per_s

    return epoch


class Rate(Log):
    """A log that remembers how fast the last epoch was."""

    images_per_s = 0.0

    def __init__(self) -> None:
        super().__init__(None, quiet=True)

    def epoch(self, step: str, epoch: int, figures: dict[str, float], images_per_s: float) -> None:
        """Remember it."""
        self.images_per_s = images_per_s


class Decoded(Dataset[tuple[Tensor, int]]):
    """What torchvision's small data sets do: an array of pixels, an image made of each, transforms."""

    def __init__(self, data: Data) -> None:
        self.pixels = data.train.images[data.train.index].cpu().numpy()
        self.labels = data.train.labels[data.train.index].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIDE, PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[place])), self.labels[place]


def plain(name: str, data: Data, batch: int, workers: int, device: Device) -> Epoch:
    """One epoch of the loop that every tutorial has."""
    net: nn.Module = models.build(name, CLASSES, SIDE).to(device.where).train()
    optimizer = torch.optim.SGD(net.parameters(), **OPTIMISER)  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler(device.where.type, enabled=device.dtype is torch.float16)
    loader = DataLoader(
        Decoded(data),
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.where.type == "cuda",
        persistent_workers=workers > 0,
    )

    def epoch() -> float:
        batches = iter(loader)
        started, seen = time.perf_counter(), 0
        for images, labels in batches:
            inputs, wanted = (x.to(device.where, non_blocking=True) for x in (images, labels))
            with device.autocast():
                loss = functional.cross_entropy(net(inputs), wanted)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            seen += len(labels)
        loss.item()  # waits for the device
        return seen / (time.perf_counter() - started)

    return epoch


if __name__ == "__main__":
    main()
