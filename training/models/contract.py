"""The shape every network has: stem, stages, pooled classifier; and the list of families that build one by name.

A network can be left and entered after any stage, gives its features when asked, and knows nothing of input
normalisation, which belongs to the data and to the bundle's manifest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.errors import RecipeError


@dataclass(frozen=True)
class Features:
    """What a network computed on the way to its logits.

    Attributes:
        maps: stem output, one map a stage, then the pooled vector: (B, C, H, W) but for the last, (B, C).
        logits: (B, K).
    """

    maps: list[Tensor]
    logits: Tensor


class Stage(nn.Module):
    """A run of blocks that ends in a ReLU which can be left out, for methods that compare pre-activations."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), after the last ReLU."""
        for block in self.blocks:
            x = block(x)
        return x

    def preact(self, x: Tensor) -> Tensor:
        """The same without the last ReLU."""
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        result: Tensor = last.preact(x)  # type: ignore[operator]
        return result


class Network(nn.Module):
    """Stem, stages, global average pool, one linear classifier.

    Attributes:
        stem: images (B, 3, H, W) -> first map.
        stages: maps -> maps, in order.
        classifier: pooled vector (B, C) -> logits (B, K).
        pre_pool_channels: C of the last map.
    """

    def __init__(self, stem: nn.Module, stages: list[Stage], pre_pool_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.pre_pool_channels = pre_pool_channels
        self.classifier = nn.Linear(pre_pool_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        return self.run_from(self.run_to(images, len(self.stages)), len(self.stages))

    def features(self, images: Tensor, *, preact: bool = False) -> Features:
        """Every map and the logits, in one pass.

        Args:
            images: (B, 3, H, W) float, normalised.
            preact: give each stage's map before its last ReLU (AB compares those); stem and vector are unchanged.
        """
        x = self.stem(images)
        maps = [x]
        for stage in self.stages:
            if preact:
                before = stage.preact(x)  # type: ignore[operator]
                maps.append(before)
                x = torch.relu(before)
            else:
                x = stage(x)
                maps.append(x)
        pooled = pool(x)
        return Features([*maps, pooled], self.classifier(pooled))

    def run_to(self, images: Tensor, stage: int) -> Tensor:
        """The map after `stage` stages (0 = the stem alone)."""
        x: Tensor = self.stem(images)
        for part in self.stages[:stage]:
            x = part(x)
        return x

    def run_from(self, x: Tensor, stage: int) -> Tensor:
        """Logits (B, K) from the map that `run_to(images, stage)` gives."""
        for part in self.stages[stage:]:
            x = part(x)
        logits: Tensor = self.classifier(pool(x))
        return logits

    def cut(self, stage: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The network in two halves that share its weights: up to `stage`, and from there to the logits.

        Raises:
            RecipeError: the network has no such stage.
        """
        if not 0 <= stage <= len(self.stages):
            raise RecipeError(f"cannot cut after stage {stage}: this network has stages 0 to {len(self.stages)}")
        return (lambda images: self.run_to(images, stage)), (lambda x: self.run_from(x, stage))


def pool(x: Tensor) -> Tensor:
    """Global average pooling: (B, C, H, W) -> (B, C)."""
    return x.mean((2, 3))


Builder = Callable[[re.Match[str], int], nn.Module]


@dataclass(frozen=True)
class Family:
    """A pattern of names and what builds them; `examples` are real names, for messages and tests."""

    pattern: re.Pattern[str]
    build: Builder
    examples: tuple[str, ...]


FAMILIES: list[Family] = []


def family(pattern: str, *examples: str) -> Callable[[Builder], Builder]:
    """Register a builder for every model name that matches `pattern` as a whole."""

    def add(build: Builder) -> Builder:
        FAMILIES.append(Family(re.compile(pattern), build, examples))
        return build

    return add
