"""What tells images apart: an embedding of the teacher's maps, and a memory of earlier images.

Source: Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", 2021, arXiv 2105.08584, section
3. The memory is bounded, the oldest go first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.device import sent
from training.methods.maps import unit
from training.synthesis.rows import Rows


class Head(nn.Module):
    """Two linear layers with a ReLU between, and a result of length one.

    Args:
        channels: of what it reads, and inside.
        width: of the embedding.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels) -> (B, width)."""
        return unit(self.layers(x))


class PairBank(nn.Module):
    """Remembered features of images, of a part and of the whole.

    Args:
        channels: of either.
        most: pairs that it holds.
    """

    def __init__(self, channels: int, most: int) -> None:
        super().__init__()
        self.channels, self.most = channels, most
        self.pairs = Rows(2 * channels)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """At most `count` pairs, none of them twice: parts (N, C) and wholes (N, C)."""
        order = torch.randperm(len(self.pairs), device="cpu")[:count]
        local, whole = self.pairs.rows[sent(order, self.pairs.rows.device)].split(self.channels, 1)
        return local, whole

    def add(self, local: Tensor, whole: Tensor) -> None:
        """Remember pairs."""
        self.pairs.add(torch.cat([local, whole], 1), self.most)
