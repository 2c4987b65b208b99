"""Unstructured pruning by magnitude: the smallest weights of the whole network are held at zero from then on.

Source: Park, No, "Prune Your Model Before Distill It", 2022, which prunes as LR rewinding does (Renda, Frankle, Carbin,
"Comparing Rewinding and Fine-tuning in Neural Network Pruning", 2020): a fifth of what is left goes in each round, and
the weights train on from where they are, under the learning rates of a new schedule. The rounds are `training.steps`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cascade.errors import RecipeError
from training.checkpoint import write_atomic

SHARE = 0.2


class Masks:
    """Which weights of a network are left: True stays, and False never becomes True again.

    Args:
        kept: name of a weight -> bool, of its shape.
    """

    def __init__(self, kept: dict[str, Tensor]) -> None:
        self.kept = kept

    @classmethod
    def whole(cls, net: nn.Module) -> Masks:
        """Nothing pruned yet."""
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(net)})

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Read masks from a file.

        Raises:
            RecipeError: the file is missing, or holds none.
        """
        try:
            return cls(load(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise RecipeError(f"cannot read the masks {path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write them to a file."""
        write_atomic(path, save({name: mask.cpu().contiguous() for name, mask in sorted(self.kept.items())}))

    def to(self, device: torch.device) -> Masks:
        """The same on another device."""
        return Masks({name: mask.to(device) for name, mask in self.kept.items()})

    def smaller(self, net: nn.Module, share: float = SHARE) -> Masks:
        """The masks after another round: the smallest of all weights that are left go, whatever their layer.

        Args:
            net: whose weights are compared, by magnitude.
            share: of the weights left that go, in (0, 1).
        """
        magnitudes = torch.cat(
            [weight.detach().abs()[self.kept[name].to(weight.device)].cpu() for name, weight in prunable(net)]
        )
        stays = torch.ones(len(magnitudes), dtype=torch.bool)
        stays[magnitudes.argsort(stable=True)[: round(share * len(magnitudes))]] = False
        masks = {name: mask.cpu().clone() for name, mask in self.kept.items()}
        parts = stays.split([int(masks[name].sum()) for name, _ in prunable(net)])
        for (name, _), part in zip(prunable(net), parts, strict=True):
            masks[name][masks[name].clone()] = part
        return Masks({name: mask.to(self.kept[name].device) for name, mask in masks.items()})

    def apply(self, net: nn.Module) -> None:
        """Set what is pruned to zero."""
        with torch.no_grad():
            for name, weight in prunable(net):
                weight.mul_(self.kept[name])

    def hold(self, net: nn.Module) -> None:
        """Set what is pruned to zero, and let no gradient reach it; `apply` after each step of an optimiser."""
        self.apply(net)
        for name, weight in prunable(net):
            weight.register_hook(self.kept[name].mul)

    def counts(self, net: nn.Module) -> dict[str, tuple[int, int]]:
        """Weights left, and weights there were, of each layer by its weight's name, in the network's order."""
        return {name: (int(self.kept[name].sum()), self.kept[name].numel()) for name, _ in prunable(net)}


def prunable(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights of every convolution and linear layer, the first, the last, projections too; no biases."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert isinstance(module.weight, nn.Parameter), "also in a Dirac convolution, which computes with them"
            yield f"{name}.weight", module.weight


def rounds_for(sparsity: float, share: float = SHARE) -> int:
    """How many rounds bring the share of pruned weights nearest to `sparsity`; the smaller number where two do.

    Args:
        sparsity: share of the weights that shall go, in (0, 1).
        share: of what is left that goes in a round, in (0, 1).
    """
    for rounds in itertools.count(1):
        short, beyond = sparsity - (1 - (1 - share) ** rounds), 1 - (1 - share) ** (rounds + 1) - sparsity
        if short <= beyond:
            return rounds
    raise AssertionError("the share pruned comes as near to one as any sparsity")
