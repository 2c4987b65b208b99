"""Take channels out of a network for good: what is left is the same network, narrower.

Nothing about it is special afterwards: it trains, is exported and is counted like any other. Which channels were kept
is noted on it as `kept`, goes into its file, and makes it again from the network of its name.

A Dirac convolution lets an output see the input of its own number, which is another one once channels are gone. So it
becomes the plain convolution that it stands for before it is cut, and stays one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import RecipeError
from training.models.contract import Network
from training.models.dirac import fold_in_place
from training.models.resnet import SubsampleAndPad
from training.pruning.channels import FIXED, Channels, channels_of

Kept = dict[str, list[int]]
Bools = NDArray[np.bool_]


def cut(net: nn.Module, kept: Mapping[str, list[int]], size: int) -> nn.Module:
    """Remove, in place, every channel that is not kept.

    Args:
        net: whole; its weights are replaced, so make the optimiser afterwards.
        kept: batch norm -> the channels that stay; those it does not name stay whole.
        size: pixels a side of the images.

    Returns:
        The same network.

    Raises:
        RecipeError: the channels are not this network's, or do not stand and fall together as they say.
    """
    channels = channels_of(fold_in_place(net), size)
    removed = _groups(channels, kept)
    for name, module in net.named_modules():
        outputs, inputs = (
            None if labels is None else ~np.isin(labels, removed)
            for labels in (channels.outputs.get(name), channels.inputs.get(name))
        )
        _narrow(module, outputs, inputs)
    net.kept = {name: list(places) for name, places in kept.items()}  # type: ignore[assignment] # plain values
    if isinstance(net, Network) and "pool" in net._modules:
        _count_pooled(net, size)
    return net


def kept_of(net: nn.Module) -> Kept | None:
    """What was kept of a network that has been cut."""
    kept: Kept | None = getattr(net, "kept", None)
    return kept


def kept_without(channels: Channels, removed: set[int]) -> Kept:
    """What stays of each batch norm when groups go; batch norms that stay whole are not named."""
    gone = np.array(sorted(removed), dtype=np.int64)
    stays = {name: np.flatnonzero(~np.isin(channels.outputs[name], gone)) for name in channels.norms}
    return {name: places.tolist() for name, places in stays.items() if len(places) < len(channels.outputs[name])}


def _groups(channels: Channels, kept: Mapping[str, list[int]]) -> NDArray[np.int64]:
    """The labels of what is not kept."""
    removed: set[int] = set()
    for name, places in kept.items():
        labels = channels.outputs.get(name) if name in channels.norms else None
        if labels is None or any(not 0 <= place < len(labels) for place in places):
            raise RecipeError(f"channels of {name!r} are to be kept, and the network has no such batch norm or channel")
        removed |= set(np.delete(labels, places).tolist())
    if FIXED in removed or kept_without(channels, removed) != {name: sorted(places) for name, places in kept.items()}:
        raise RecipeError("the channels to keep do not fit the network: some of those that would go are needed")
    return np.array(sorted(removed), dtype=np.int64)


def _narrow(module: nn.Module, outputs: Bools | None, inputs: Bools | None) -> None:
    """Keep some outputs and inputs of one module."""
    if isinstance(module, nn.Conv2d) and outputs is not None:
        _select(module, "weight", outputs)
        _select(module, "bias", outputs)
        module.out_channels = int(outputs.sum())
        if inputs is None:  # depthwise
            module.in_channels = module.groups = module.out_channels
    elif isinstance(module, nn.BatchNorm2d) and outputs is not None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(module, name, outputs)
        module.num_features = int(outputs.sum())
    elif isinstance(module, SubsampleAndPad) and outputs is not None:
        module.before, module.after = (
            int(part.sum()) for part in (outputs[: module.before], outputs[len(outputs) - module.after :])
        )
    if inputs is not None and isinstance(module, nn.Conv2d | nn.Linear):
        _select(module, "weight", inputs, dim=1)
        setattr(module, "in_channels" if isinstance(module, nn.Conv2d) else "in_features", int(inputs.sum()))


def _select(module: nn.Module, name: str, places: Bools, dim: int = 0) -> None:
    """Keep some places of one dimension of a parameter or a buffer."""
    whole: Tensor | None = getattr(module, name)
    if whole is None:
        return
    index = torch.from_numpy(np.flatnonzero(places)).to(whole.device)
    part: Any = whole.detach().index_select(dim, index)
    if isinstance(whole, nn.Parameter):
        part = nn.Parameter(part, requires_grad=whole.requires_grad)
    setattr(module, name, part)


def _count_pooled(net: Network, size: int) -> None:
    """Note how many channels are pooled now."""
    training = net.training
    with torch.no_grad():
        device = net.classifier.weight.device
        net.pre_pool_channels = net.eval().pre_pool(torch.zeros(1, 3, size, size, device=device)).shape[1]
    net.train(training)
