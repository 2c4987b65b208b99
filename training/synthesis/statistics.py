"""What a teacher's batch norms see while it looks at images, and what they remember of those it was trained on.

Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020, arXiv 1912.08795:
images whose maps have the remembered mean and variance, channel by channel, look like training images to the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from training.compiled import uncompiled


@dataclass(frozen=True)
class Seen:
    """What one batch norm was given, and what it remembers.

    Attributes:
        maps: (B, C, H, W), its input, with gradient.
        mean, variance: (C,), its running statistics.
    """

    maps: Tensor
    mean: Tensor
    variance: Tensor


@contextmanager
def watched(net: nn.Module) -> Iterator[list[Seen]]:
    """Note what every batch norm of a network is given, in the order in which they are asked.

    Nothing is compiled meanwhile: a compiled network does not know of the hooks.
    """
    seen: list[Seen] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d), "only those are watched"
        assert norm.running_mean is not None, "checked by norms_of"
        assert norm.running_var is not None, "checked by norms_of"
        seen.append(Seen(inputs[0], norm.running_mean, norm.running_var))

    handles = [norm.register_forward_pre_hook(note) for norm in norms_of(net)]
    try:
        with uncompiled():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms of a network that remember statistics."""
    return [norm for norm in net.modules() if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None]


def refuse_without_norms(method: str, teacher: nn.Module) -> None:
    """Check that there is something to invert.

    Raises:
        RecipeError: the teacher remembers nothing of its data.
    """
    if not norms_of(teacher):
        raise RecipeError(
            f"method {method!r} goes by what the teacher's batch norms remember of its data, and the teacher has none: "
            "take another teacher, or zskt, which needs logits alone"
        )


def statistics_loss(seen: list[Seen]) -> Tensor:
    """How far the maps are from what is remembered: `|var - running var|_2 + |mean - running mean|_2`, summed.

    Args:
        seen: by each batch norm; variances are those over B, H and W, not corrected for the count.
    """
    apart = []
    for one in seen:
        variance, mean = torch.var_mean(one.maps.float(), (0, 2, 3), correction=0)
        apart.append((variance - one.variance).norm() + (mean - one.mean).norm())
    return torch.stack(apart).sum()


def instance_means(seen: list[Seen]) -> Tensor:
    """The spatial mean of what every batch norm was given, side by side: (B, sum of C)."""
    return torch.cat([one.maps.float().mean((2, 3)) for one in seen], 1)
