"""The images that were made so far, as eight-bit colours, for a student to learn from as from a data set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cascade.manifest import Preprocess
from training.data import Batches, Split
from training.device import sent
from training.methods.base import Batch, TrainingSet
from training.synthesis.rows import Rows


class ImagePool(nn.Module):
    """Grows by whole batches; gives augmented ones. Everything is a buffer, so that a checkpoint holds it.

    Args:
        data: how images are augmented and normalised.
    """

    def __init__(self, data: TrainingSet) -> None:
        super().__init__()
        self.data = data
        self.pixels = Rows(data.size, data.size, 3, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def add(self, images: Tensor) -> None:
        """Take images (B, 3, S, S) in [0, 1] in."""
        self.pixels.add((images.permute(0, 2, 3, 1) * 255).round().byte())

    def draw(self, count: int) -> Batch:
        """A batch, normalised and augmented as training images are, none of them twice unless there are fewer.

        The labels are -1: nobody has labelled them.
        """
        there = len(self.pixels)
        places = torch.randperm(there)[:count] if there >= count else torch.randint(there, (count,))
        pixels = self.pixels.rows
        labels = torch.full((there,), -1, device=pixels.device)
        index = sent(places, pixels.device)
        rule = Preprocess(size=self.data.size, mean=self.data.mean, std=self.data.std)
        batches = Batches(rule, pixels.device)
        return batches.augmented(Split(pixels, labels, index), index, self.data.augment, torch.default_generator)

    def last(self, count: int) -> Tensor:
        """The last images, (N, 3, S, S) in [0, 1]."""
        return self.pixels.rows[-count:].permute(0, 3, 1, 2) / 255
