"""A generator that stays, and student and generator that move in turns.

Every few batches of the student the generator moves by what its images are judged to be worth; the student learns from
new images each time, as they are made, without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from training.device import sent
from training.methods.base import Batch, MethodConfig, TrainingSet
from training.methods.distiller import Positive
from training.synthesis.base import SHOWN, Synthesis, adam, descend, unlabelled
from training.synthesis.generator import Generator

Count = Annotated[int, Field(gt=0)]


class GenerativeConfig(MethodConfig):
    """The generator's settings.

    Attributes:
        noise: numbers that an image is made of.
        width: channels of the generator's last hidden map.
        generator_lr: learning rate of its Adam.
        generator_policy: how that goes on: constant, or following the student's, in the same proportion to its highest.
        generator_batch: images that it is judged by.
        generator_steps: of the generator, each time that it moves.
        student_steps: batches of the student from one time to the next.
    """

    noise: Count = 256
    width: Count = 64
    generator_lr: Positive = 1e-3
    generator_policy: Literal["constant", "follow"] = "constant"
    generator_batch: Annotated[int, Field(gt=1)] = 256
    generator_steps: Count = 1
    student_steps: Count = 5


class Generative(Synthesis):
    """Images of a generator that learns meanwhile.

    Args:
        config: of the generator.
        data: what it has to look like to the networks.
        judge: normalised images (B, 3, S, S) to the scalar that the generator lowers.
    """

    def __init__(self, config: GenerativeConfig, data: TrainingSet, judge: Callable[[Tensor], Tensor]) -> None:
        super().__init__(data)
        self.config, self.judge = config, judge
        self.generator = Generator(config.noise, 4 * config.width, config.width, data.size)
        self.optimizer = adam(*self.generator.parameters(), lr=config.generator_lr)
        if config.generator_policy == "follow":
            self.optimizer.param_groups[0]["initial_lr"] = config.generator_lr
        self.shown: Tensor | None = None

    def batch(self) -> Batch:
        """New images, from a generator that has moved if it was its turn."""
        made = int(self.batches_made)
        if made % self.config.student_steps == 0:
            for _ in range(self.config.generator_steps):
                descend(self.judge(self.normalised(self.images(self.config.generator_batch))), self.optimizer)
        with torch.no_grad():
            images = self.images(self.data.batch_size)
        self.batches_made.put(made + 1)
        self.shown = images[:SHOWN]
        return unlabelled(self.normalised(images))

    def images(self, count: int) -> Tensor:
        """New ones, (count, 3, S, S) in [0, 1]."""
        noise = sent(torch.randn(count, self.config.noise), self.mean.device)
        images: Tensor = self.generator(noise)
        return images

    def optimizers(self) -> dict[str, Optimizer]:
        """The generator's."""
        return {"generator": self.optimizer}

    def pictures(self) -> Tensor | None:
        """Some of what the student saw last."""
        return self.shown
