"""Data sets as tensors: decoded once, kept as uint8, cut into train, D_v and test; augmented a batch at a time.

A small-image set fits the device whole, so neither CPU workers nor an image library stands in the way of training: a
batch is one gather (which crops, pads and flips) and one multiply-add (which normalises). A set that is too large for
memory is decoded once a process into a file that is mapped, and batches travel from there, as uint8.

Where training takes random resized crops, the squares that are cropped may be larger than what a network sees: each is
kept once, and D_v's images are its middle, which is what a server would make of the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import Tensor

from cascade.manifest import Preprocess
from cascade.pixels import scale_and_shift
from training.crops import crop_flip, draw_boxes, resized_crop
from training.device import sent
from training.methods.base import Batch
from training.settings import Augment, DataConfig
from training.sources import decode
from training.splits import draw_dv, fingerprint, measured


@dataclass(frozen=True)
class Split:
    """Some samples of one decoded part.

    Attributes:
        images: (N, S, S, 3) uint8, the whole part.
        labels: (N,) int64, the whole part.
        index: (n,) int64, the samples that belong to this split.
        pictures: (N, L, L, 3) uint8, L >= S, what resized crops are of; `images` are a view of its middle. None where
            that is `images`.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    pictures: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def fingerprint(self) -> str:
        """sha256 over the indices and labels of the split's samples: which samples these are."""
        return fingerprint(self.index.cpu().numpy(), self.labels[self.index].cpu().numpy())

    def to(self, device: torch.device, room: int) -> Split:
        """The same on another device; itself, to be gathered from a batch at a time, if it is over `room` bytes."""
        stored = self.images if self.pictures is None else self.pictures
        if stored.numel() > room:
            return self
        moved, labels, index = (tensor.to(device) for tensor in (stored, self.labels, self.index))
        if self.pictures is None:
            return Split(moved, labels, index)
        return Split(middle(moved, self.images.shape[1]), labels, index, moved)


def middle(pictures: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` pixels of (N, L, L, 3), a view; L - `size` is even."""
    around = (pictures.shape[1] - size) // 2
    return pictures[:, around : around + size, around : around + size]


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
        train, test = self.train.to(device, room), self.test.to(device, room)
        dv = Split(train.images, train.labels, self.dv.index.to(train.index.device))
        return replace(self, train=train, dv=dv, test=test)


def load(config: DataConfig, *, quiet: bool = False) -> Data:
    """Decode, split, and measure the channels.

    Raises:
        RecipeError: the data set is unknown, missing, or not what the recipe says.
    """
    decoded = decode(config, config.kept(), Console(stderr=True, quiet=quiet))
    train_index, dv_index = draw_dv(len(decoded.train_labels), config)
    pictures, labels = torch.from_numpy(decoded.train_images), torch.from_numpy(decoded.train_labels)
    test, test_labels = torch.from_numpy(decoded.test_images), torch.from_numpy(decoded.test_labels)
    images = middle(pictures, config.size)
    larger = pictures if pictures.shape[1] > config.size else None
    return Data(
        decoded.classes,
        measured(config, images.numpy(), train_index),
        Split(images, labels, torch.from_numpy(train_index), larger),
        Split(images, labels, torch.from_numpy(dv_index)),
        Split(middle(test, config.size), test_labels, torch.arange(len(test_labels))),
        config.augment,
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
        """(B, S, S, 3) uint8, or float32 in [0, 255] -> (B, 3, S, S) float32, channels last in memory."""
        images = sent(pixels, self.device).permute(0, 3, 1, 2).to(torch.float32, copy=True)
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
        crop = self._shifted if augment.area is None else self._resized
        return self._batch(split, index, crop(split, index, augment, generator))

    def _shifted(self, split: Split, index: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
        count, side = len(index), split.images.shape[1]
        offsets = torch.randint(0, 2 * augment.pad + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (count,), generator=generator).bool() & augment.flip
        offsets, mirrored = (sent(drawn, index.device) for drawn in (offsets - augment.pad, mirrored))
        return crop_flip(split.images[index], offsets, mirrored, side)

    def _resized(self, split: Split, index: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
        assert augment.area is not None, "otherwise images are shifted"
        pictures = split.images if split.pictures is None else split.pictures
        boxes = draw_boxes(len(index), pictures.shape[1], augment.area, generator)
        mirrored = torch.randint(0, 2, (len(index),), generator=generator).bool() & augment.flip
        return resized_crop(sent(pictures[index], self.device), boxes, mirrored, split.images.shape[1])

    def _batch(self, split: Split, index: Tensor, pixels: Tensor) -> Batch:
        labels, index = (sent(known, self.device) for known in (split.labels[index], index))
        return Batch(self.normalise(pixels), labels, index)
