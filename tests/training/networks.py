"""Networks of a few numbers, for losses that can be worked out by hand, and batches to give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training import models
from training.methods.base import Batch, Networks, TrainingSet


class Says(nn.Module):
    """Gives the same logits (B, K) whatever it sees; they can be learned."""

    def __init__(self, *logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits * 1


def batch(*labels: int, side: int = 8, seed: int = 0) -> Batch:
    """Random images with these labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(labels), 3, side, side, generator=generator)
    return Batch(images, torch.tensor(labels), torch.arange(len(labels)))


def training_set(*labels: int, size: int = 8, batch_size: int = 16) -> TrainingSet:
    """Samples with these labels, all of them trained on; default sixteen, four of each class."""
    known = torch.tensor(labels or [0, 1, 2, 3] * 4)
    return TrainingSet(known, torch.arange(len(known)), size, batch_size)


def frozen(name: str, seed: int, classes: int = 4) -> nn.Module:
    """A network whose batch norms have seen something."""
    torch.manual_seed(seed)
    net = models.build(name, classes)
    net(torch.randn(32, 3, 8, 8))
    return net.eval().requires_grad_(requires_grad=False)


def networks(seed: int = 0, earlier: int = 1) -> Networks:
    """A student to train, a teacher and earlier stages, all different."""
    stages = tuple(frozen("resnet8_0.125_a", seed + 10 + number) for number in range(earlier))
    torch.manual_seed(seed)
    return Networks(models.build("resnet8_0.25_a", 4), frozen("resnet8_0.5_a", seed + 1), stages)


def state(*nets: nn.Module | None) -> list[Tensor]:
    """Every parameter and buffer, copied."""
    return [value.clone() for net in nets if net is not None for value in net.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
