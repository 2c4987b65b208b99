"""What makes a method's images, and the frame of a method that learns from nothing else.

Of the training set such a method knows the size of its images, how they are normalised, and how a batch is augmented:
`losses` reads no labels, and `make_batch` never draws. An epoch is as many batches as it would be with the data.
Images are made in float32, whatever the run's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Adam, Optimizer

from cascade.errors import RecipeError
from training.compiled import uncompiled
from training.methods.base import Batch, Method, Networks, TrainingSet
from training.methods.count import Count

SHOWN = 64
BETAS = 0.5, 0.999  # of Adam, for generators


class Synthesis(nn.Module):
    """Makes images.

    Args:
        data: what they have to look like to the networks.

    Attributes:
        batches_made: so far.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: TrainingSet) -> None:
        super().__init__()
        self.data = data
        self.register_buffer("mean", torch.tensor(data.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data.std).view(1, 3, 1, 1), persistent=False)
        self.batches_made = Count(self, "made")

    def normalised(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> what a network is given."""
        return (images - self.mean) / self.std

    def batch(self) -> Batch:
        """The next batch for the student."""
        raise NotImplementedError("a synthesis must define batch()")

    def optimizers(self) -> dict[str, Optimizer]:
        """What it moves its own weights with, by name."""
        return {}

    def pictures(self) -> Tensor | None:
        """Some of the last images, (N, 3, S, S) in [0, 1]; None before there are any."""
        raise NotImplementedError("a synthesis must define pictures()")


class DataFree(Method):
    """A method that makes its own images.

    Raises:
        RecipeError: it would have to make them in several processes.
    """

    def __init__(self, config: Any, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RecipeError(f"method {self.name!r} makes its images in one process: start it without torchrun")
        self.synthesis = self.synthesize()

    def synthesize(self) -> Synthesis:
        """What makes the images; called once, when everything else is there."""
        raise NotImplementedError(f"method {self.name!r} must define synthesize()")

    def trainable(self) -> Iterator[nn.Parameter]:
        """What would learn from data, and nothing of what makes the images."""
        others = {id(parameter) for parameter in self.synthesis.parameters()}
        return (parameter for parameter in super().trainable() if id(parameter) not in others)

    def make_batch(self, draw: Callable[[], Batch]) -> Batch:
        """Images of its own."""
        return self.synthesis.batch()

    def optimizers(self) -> dict[str, Optimizer]:
        """Those of what makes the images."""
        return self.synthesis.optimizers()

    def pictures(self) -> Tensor | None:
        """Some of the last images."""
        return self.synthesis.pictures()


def unlabelled(images: Tensor) -> Batch:
    """A batch of images that nobody has labelled: every label is -1, which cross-entropy refuses."""
    index = torch.arange(len(images), device=images.device)
    return Batch(images, torch.full_like(index, -1), index)


def adam(*parameters: nn.Parameter | Tensor, lr: float, betas: tuple[float, float] = BETAS) -> Adam:
    """The optimiser of what makes images."""
    return Adam(parameters, lr=lr, betas=betas)


def descend(loss: Tensor, *optimizers: Optimizer) -> None:
    """One step of each optimiser; whatever else the loss went through, such as the student, gets no gradient."""
    moved = [value for optimizer in optimizers for group in optimizer.param_groups for value in group["params"]]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=moved)
    for optimizer in optimizers:
        optimizer.step()


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def probe(net: nn.Module, size: int) -> Tensor:
    """The logits (1, K) of one black image, which say how many classes there are; the network is left as it was."""
    with in_eval_mode(net), uncompiled():
        image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
        logits: Tensor = net(image)
    return logits
