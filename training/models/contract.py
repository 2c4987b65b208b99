"""The shape every network has: stem, stages, head, pool, classifier.

A network can be left and entered after any stage, gives its features when asked, and knows nothing of input
normalisation, which belongs to the data and to the bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.errors import RecipeError


@dataclass(frozen=True)
class Features:
    """What a network computed on the way to its logits.

    Attributes:
        maps: stem output and one map a stage, (B, C, H, W); last the vector that the classifier reads, (B, D).
        logits: (B, K).
        pre_pool: the map that is pooled, (B, C, H, W): the last stage's, or what the head made of it.
    """

    maps: list[Tensor]
    logits: Tensor
    pre_pool: Tensor


class Stage(nn.Module):
    """A run of blocks. Where the last one has a method `preact`, the stage ends in a ReLU that can be left out."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *, both: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, C', H', W'); with `both`, what the method of that name gives."""
        if both:
            return self._both(x)
        for block in self.blocks:
            x = block(x)
        return x

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same map, and the one before its last ReLU; one and the same where the stage ends in none."""
        found: tuple[Tensor, Tensor] = self(x, both=True)  # through the call, which is what gets compiled
        return found

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        if not hasattr(last, "preact"):
            x = last(x)
            return x, x
        before: Tensor = last.preact(x)  # type: ignore[operator]
        return torch.relu(before), before


class GlobalPool(nn.Module):
    """Global average pooling: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over height and width."""
        return x.mean((2, 3))


class Network(nn.Module):
    """Stem, stages, perhaps a head, a pool, one linear classifier.

    Args:
        stem: as below.
        stages: as below.
        pre_pool_channels: as below.
        num_classes: K.
        head: what lies between the last stage and the pool; default nothing.
        pool: default global average pooling.
        width: D, where the pool changes the number of channels.

    Attributes:
        stem: images (B, 3, H, W) -> first map.
        stages: maps -> maps, in order.
        head: last stage's map -> the map that is pooled, such as MobileNetV2's last convolution.
        pool: that map (B, C, H, W) -> vector (B, D), with the hidden layers of networks that have some.
        classifier: vector (B, D) -> logits (B, K).
        pre_pool_channels: C of the map that is pooled.
    """

    classifier: nn.Linear

    def __init__(
        self,
        stem: nn.Module,
        stages: list[Stage],
        pre_pool_channels: int,
        num_classes: int,
        *,
        head: nn.Module | None = None,
        pool: nn.Module | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head or nn.Identity()
        self.pool = pool or GlobalPool()
        self.pre_pool_channels = pre_pool_channels
        self.classifier = nn.Linear(width or pre_pool_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        return self.classify(self.pre_pool(images))

    def features(self, images: Tensor, *, preact: bool = False) -> Features:
        """Every map and the logits, in one pass.

        Args:
            images: (B, 3, H, W) float, normalised.
            preact: give each stage's map as it is before a ReLU (AB compares those): the stage's own last one where it
                ends in one, otherwise as `before_relu` says; stem and vector are unchanged.
        """
        x = self.stem(images)
        maps = [x]
        for number, stage in enumerate(self.stages):
            if preact:
                x, before = stage.both(x)  # type: ignore[operator]
                maps.append(self.before_relu(number, before))
            else:
                x = stage(x)
                maps.append(x)
        pre_pool = self.head(x)
        vector = self.pool(pre_pool)
        return Features([*maps, vector], self.classifier(vector), pre_pool)

    def before_relu(self, number: int, x: Tensor) -> Tensor:
        """What `features(preact=True)` gives for a stage.

        Args:
            number: of the stage, from 0.
            x: its map before its last ReLU.
        """
        return x

    def pre_pool(self, images: Tensor) -> Tensor:
        """The map that is pooled, (B, C, H, W)."""
        x: Tensor = self.head(self.run_to(images, len(self.stages)))
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) from the map that `pre_pool` gives."""
        logits: Tensor = self.classifier(self.pool(x))
        return logits

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
        return self.classify(self.head(x))

    def cut(self, stage: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The network in two halves that share its weights: up to `stage`, and from there to the logits.

        Raises:
            RecipeError: the network has no such stage.
        """
        if not 0 <= stage <= len(self.stages):
            raise RecipeError(f"cannot cut after stage {stage}: this network has stages 0 to {len(self.stages)}")
        return (lambda images: self.run_to(images, stage)), (lambda x: self.run_from(x, stage))


def initialise(net: Network) -> Network:
    """Give every convolution Kaiming-normal weights by its outputs and no bias; the rest stays as torch makes it.

    Source: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", 2015, Eq. 14.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
