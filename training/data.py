"""Data sets as tensors: decoded once, kept as uint8, cut into train, D_v and test; augmented a batch at a time.

A small-image set fits the device whole, so neither CPU workers nor an image library stands in the way of training: a
batch is one gather (which crops, pads and flips) and one multiply-add (which normalises). A set that is too large for
memory is decoded once a process into a file that is mapped, and batches travel from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from cascade.manifest import Preprocess
from cascade.pixels import scale_and_shift
from training.device import sent
from training.methods.base import Batch
from training.settings import Augment, DataConfig
from training.sources import Decoded, decode
from training.splits import draw_dv, fingerprint, measure


@dataclass(frozen=True)
class Split:
    """Some samples of one decoded part.

    Attributes:
        images: (N, S, S, 3) uint8, the whole part.
        labels: (N,) int64, the whole part.
        index: (n,) int64, the samples that belong to this split.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def fingerprint(self) -> str:
        """sha256 over the indices and labels of the split's samples: which samples these are."""
        return fingerprint(self.index.cpu().numpy(), self.labels[self.index].cpu().numpy())


@dataclass(frozen=True)
class Data:
    """A data set ready for training.

    Attributes:
        classes: names, in the order of the labels.
        preprocess: what turns an image into network input; travels with the bundle.
        train: what the networks learn from; without D_v's samples if they are excluded.
        dv: D_v, for energies, thresholds and choices between settings.
        test: for the figures at the end, and nothing else.
        augment: of training batches.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    train: Split
    dv: Split
    test: Split
    augment: Augment

    def to(self, device: torch.device) -> Data:
        """The same with its tensors on another device, but for parts that would fill more than a quarter of it."""
        if device.type == "cpu":
            return self
        room = torch.cuda.mem_get_info(device)[0] // 4
        train, test = (_moved(split.images, split.labels, device, room) for split in (self.train, self.test))
        return replace(
            self,
            train=Split(*train, self.train.index.to(train[0].device)),
            dv=Split(*train, self.dv.index.to(train[0].device)),
            test=Split(*test, self.test.index.to(test[0].device)),
        )


def _moved(images: Tensor, labels: Tensor, device: torch.device, room: int) -> tuple[Tensor, Tensor]:
    if images.numel() > room:
        return images, labels
    return images.to(device), labels.to(device)


def load(config: DataConfig, *, quiet: bool = False) -> Data:
    """Decode, split, and measure the channels.

    Raises:
        RecipeError: the data set is unknown, missing, or not what the recipe says.
    """
    decoded = decode(config, config.rule(), Console(stderr=True, quiet=quiet))
    train_index, dv_index = draw_dv(len(decoded.train_labels), config)
    mean, std = measure(decoded.train_images, train_index)
    rule = config.rule().model_copy(update={"mean": config.mean or mean, "std": config.std or std})
    return _assemble(decoded, rule, train_index, dv_index, config.augment)


def _assemble(
    decoded: Decoded, rule: Preprocess, train: NDArray[np.int64], dv: NDArray[np.int64], augment: Augment
) -> Data:
    images, labels = torch.from_numpy(decoded.train_images), torch.from_numpy(decoded.train_labels)
    test_images, test_labels = torch.from_numpy(decoded.test_images), torch.from_numpy(decoded.test_labels)
    return Data(
        decoded.classes,
        rule,
        Split(images, labels, torch.from_numpy(train)),
        Split(images, labels, torch.from_numpy(dv)),
        Split(test_images, test_labels, torch.arange(len(test_labels))),
        augment,
    )


class Batches:
    """Cuts splits into normalised batches.

    Args:
        rule: normalisation.
        device: where batches are made.
    """

    def __init__(self, rule: Preprocess, device: torch.device) -> None:
        scale, shift = scale_and_shift(rule)
        self.scale = sent(torch.from_numpy(scale), device)
        self.shift = sent(torch.from_numpy(shift), device)
        self.device = device

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, channels last in memory."""
        images = sent(pixels, self.device).permute(0, 3, 1, 2).float()
        return images.mul_(self.scale).add_(self.shift)

    def plain(self, split: Split, size: int) -> Iterator[Batch]:
        """Every sample of a split once, in order, without augmentation."""
        for index in split.index.split(size):
            yield self._batch(split, index, split.images[index])

    def augmented(self, split: Split, index: Tensor, augment: Augment, generator: torch.Generator) -> Batch:
        """One training batch.

        Args:
            split: the training split.
            index: (B,) which samples of its part.
            augment: what to do to them.
            generator: on the CPU, so that every device draws the same numbers.
        """
        count, side = len(index), split.images.shape[1]
        offsets = torch.randint(0, 2 * augment.pad + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (count,), generator=generator).bool() & augment.flip
        offsets, mirrored = (sent(drawn, index.device) for drawn in (offsets - augment.pad, mirrored))
        pixels = crop_flip(split.images[index], offsets, mirrored, side)
        return self._batch(split, index, pixels)

    def _batch(self, split: Split, index: Tensor, pixels: Tensor) -> Batch:
        labels, index = (sent(known, self.device) for known in (split.labels[index], index))
        return Batch(self.normalise(pixels), labels, index)


def crop_flip(pixels: Tensor, offsets: Tensor, mirrored: Tensor, side: int) -> Tensor:
    """Shift each image by its offsets, black where it runs out, then mirror some; one gather for the batch.

    Args:
        pixels: (B, side, side, 3) uint8.
        offsets: (2, B) int64, down and right; negative is up and left.
        mirrored: (B,) bool, left-right.
        side: pixels.
    """
    steps = torch.arange(side, device=pixels.device)
    rows = offsets[0][:, None] + steps
    columns = offsets[1][:, None] + torch.where(mirrored[:, None], side - 1 - steps, steps)
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    samples = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = pixels[samples, rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None, :]]
    return moved * inside[..., None]
