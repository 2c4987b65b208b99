"""Contrastive model inversion: images that a teacher takes for its data, and that differ from all before them.

Source: Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", 2021, arXiv 2105.08584, section
3, with the settings of its code for CIFAR-10 without images to begin from. Each batch has a generator of its own, drawn
anew, and noise that is moved with it; kept are the images of the lowest loss. The head that tells images apart stays.

Differences from the code: the bank and the pool are part of the checkpoint, so that a stopped run ends as one that was
not; the student's batches are drawn anew from the whole pool, instead of pass by pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from training.device import sent
from training.methods.base import Batch, MethodConfig, TrainingSet
from training.methods.distiller import NonNegative, Positive
from training.synthesis.base import SHOWN, Synthesis, adam, descend, probe
from training.synthesis.contrast import Head, PairBank
from training.synthesis.generative import Count
from training.synthesis.generator import Generator, restart
from training.synthesis.losses import adversarial_loss, contrastive_loss
from training.synthesis.pool import ImagePool
from training.synthesis.statistics import instance_means, statistics_loss, watched
from training.synthesis.views import part_view, whole_view

HEAD_BETAS = 0.9, 0.999


class InversionConfig(MethodConfig):
    """How images are made.

    Attributes:
        noise: numbers that an image is made of.
        width: channels of the generator's last hidden map.
        generator_lr: learning rate of Adam, for generator, noise and head.
        synthesis_batch: images that are made at a time.
        synthesis_steps: in which they are.
        student_steps: batches of the student from one time to the next.
        bn, one_hot, adversarial, contrast: weights of what they are judged by.
        contrast_t: temperature of the contrast.
        embedding: width of the embeddings that are contrasted.
        bank: images whose features are remembered.
        negatives: of them that a batch is held against.
    """

    noise: Count = 256
    width: Count = 64
    generator_lr: Positive = 1e-3
    synthesis_batch: Annotated[int, Field(gt=1)] = 256
    synthesis_steps: Count = 200
    student_steps: Count = 400
    bn: NonNegative = 1.0
    one_hot: NonNegative = 1.0
    adversarial: NonNegative = 0.5
    contrast: NonNegative = 0.8
    contrast_t: Positive = 0.1
    embedding: Count = 256
    bank: Count = 40960
    negatives: Annotated[int, Field(ge=0)] = 4096


class Inversion(Synthesis):
    """A growing pool of images, made from the teacher alone.

    Args:
        config: how.
        data: what they have to look like to the networks.
        teacher: with batch norms, frozen, in eval mode.
        student: normalised images (B, 3, S, S) to its logits (B, K), with a gradient to the images.
    """

    def __init__(
        self, config: InversionConfig, data: TrainingSet, teacher: nn.Module, student: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(data)
        self.config, self.student = config, student
        self.teacher = (teacher,)  # in a tuple: no part of a checkpoint
        with watched(teacher) as seen:
            self.classes = probe(teacher, data.size).shape[1]
        channels = sum(one.maps.shape[1] for one in seen)
        self.generator = Generator(config.noise, 2 * config.width, config.width, data.size)
        self.head = Head(channels, config.embedding)
        self.optimizer = adam(*self.head.parameters(), lr=config.generator_lr, betas=HEAD_BETAS)
        self.bank = PairBank(channels, config.bank)
        self.pool = ImagePool(data)

    def batch(self) -> Batch:
        """Images from the pool, which has grown if it was time."""
        made = int(self.batches_made)
        if made % self.config.student_steps == 0:
            self.synthesize()
        self.batches_made.put(made + 1)
        return self.pool.draw(self.data.batch_size)

    def synthesize(self) -> None:
        """Make a batch of images and remember it."""
        config, where = self.config, self.mean.device
        restart(self.generator)
        noise = sent(torch.randn(config.synthesis_batch, config.noise), where).requires_grad_()
        labels = sent(torch.randint(self.classes, (config.synthesis_batch,)).sort().values, where)
        mover = adam(*self.generator.parameters(), noise, lr=config.generator_lr)
        best: list[Tensor] = []
        for _ in range(config.synthesis_steps):
            images = self.generator(noise)
            loss, local, whole = self.judged(images, labels)
            found = [x.detach() for x in (loss, images, local, whole)]
            if best:  # chosen on the device: to ask for the loss would be to wait for it
                better = found[0] < best[0]
                found = [torch.where(better, new, old) for new, old in zip(found, best, strict=True)]
            best = found
            descend(loss, mover, self.optimizer)
        self.pool.add(best[1])
        self.bank.add(best[2], best[3])

    def judged(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What images (B, 3, S, S) in [0, 1] for labels (B,) are judged to be worth, and their features.

        Returns:
            The loss; the features of a part of each image and of the whole, (B, C) each.
        """
        config, augment, teacher = self.config, self.data.augment, self.teacher[0]
        view = self.normalised(whole_view(images, augment))
        with watched(teacher) as seen:
            target = teacher(view).float()
        whole = instance_means(seen)
        loss = config.bn * statistics_loss(seen) + config.one_hot * functional.cross_entropy(target, labels)
        if config.adversarial:
            loss = loss + config.adversarial * adversarial_loss(self.student(view).float(), target, where_agreed=True)
        with watched(teacher) as seen:
            teacher(self.normalised(part_view(images, augment)))
        local = instance_means(seen)
        if config.contrast:
            loss = loss + config.contrast * self.contrast(local, whole)
        return loss, local, whole

    def contrast(self, local: Tensor, whole: Tensor) -> Tensor:
        """The contrast of these features (B, C) with each other and with some of the bank's."""
        banked = self.bank.draw(self.config.negatives)
        embedded = [self.head(torch.cat(pair)) for pair in zip((local, whole), banked, strict=True)]
        return contrastive_loss(embedded[0], embedded[1], self.config.contrast_t, len(local))

    def optimizers(self) -> dict[str, Optimizer]:
        """The head's; the generator's does not outlive a batch."""
        return {"head": self.optimizer}

    def pictures(self) -> Tensor | None:
        """Some of those made last."""
        return self.pool.last(SHOWN) if len(self.pool) else None
