"""Network slimming: channels whose batch norm has a small scale go.

Source: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", 2017,
section 3; as "Residual Distillation" (JointRD), 2020, applies it to plain networks: channels that are added to a
shortcut stay. The penalty that makes scales small is `training.methods.slimming`.

Where one mask has to hold for several batch norms, as around a depthwise convolution, a channel is as large as the
largest of its scales. The threshold is the quantile of these, and where scales are equal the first channels go.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from cascade.errors import RecipeError
from training.models.dirac import fold_in_place
from training.pruning.channels import FIXED, Channels, channels_of
from training.pruning.cut import Kept, cut, kept_without


def slim(net: nn.Module, rate: float, size: int, *, floor: int = 8, shared: bool = False) -> nn.Module:
    """Cut a share of the channels, in place; Dirac convolutions become plain ones.

    Args:
        net: trained; fine-tune it afterwards.
        rate: share of the channels that can go, in (0, 1).
        size: pixels a side of the images.
        floor: channels that every batch norm keeps, if it has as many.
        shared: let channels go that are added to a shortcut, all those of one sum together.

    Returns:
        The same network, with what was kept noted on it.

    Raises:
        RecipeError: the network has no channel that can go.
    """
    channels = channels_of(fold_in_place(net), size)
    return cut(net, chosen(net, channels, rate, floor=floor, shared=shared), size)


def chosen(net: nn.Module, channels: Channels, rate: float, *, floor: int, shared: bool) -> Kept:
    """Which channels stay, by one threshold for the whole network."""
    scales = scales_of(net, channels)
    if not shared:
        scales = {label: scale for label, scale in scales.items() if label not in channels.added}
    if not scales:
        raise RecipeError(
            "slimming finds no channel of this network that can go: each is added to others, grouped, shuffled, "
            "or without a batch norm right behind its convolution"
        )
    count = round(rate * len(scales))
    smallest = sorted(scales, key=lambda label: (scales[label], label))[:count]
    return kept_without(channels, set(smallest) - spared(scales, channels, floor))


def scales_of(net: nn.Module, channels: Channels) -> dict[int, float]:
    """The largest |scale| of each group of channels."""
    scales: dict[int, float] = {}
    for name in channels.norms:
        weight = net.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter), "norms without scales belong to no group"
        for label, scale in zip(channels.outputs[name].tolist(), weight.detach().abs().tolist(), strict=True):
            if label != FIXED:
                scales[label] = max(scale, scales.get(label, 0.0))
    return scales


def spared(scales: dict[int, float], channels: Channels, floor: int) -> set[int]:
    """The largest channels of each batch norm, `floor` of them, which stay whatever the threshold says."""
    kept: set[int] = set()
    for name in channels.norms:
        labels = channels.outputs[name]
        order = np.argsort([-scales.get(label, np.inf) for label in labels.tolist()], kind="stable")
        kept |= set(labels[order[:floor]].tolist())
    return kept
