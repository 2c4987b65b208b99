"""Dirac parametrisation: a convolution that begins near the identity, so that plain networks can be trained.

Source: JointRD's released code, after Zagoruyko, Komodakis, "DiracNets: Training Very Deep Neural Networks Without
Skip-Connections", 2017, arXiv 1706.00388, Eq. 1, without its normalisation of the weights:
`W' = diag(alpha) I + diag(beta) W`, alpha = 1 and beta = 0.1 at first, both without weight decay.

A subclass rather than `torch.nn.utils.parametrize`: removing that from a copied network removes it from the original
too, since copies share the class that it makes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ALPHA, BETA = 1.0, 0.1


class Dirac(nn.Module):
    """The weight that is used, made from the one that is learned.

    Args:
        channels_out: O.

    Attributes:
        alpha: (O,), how much of its own channel each output lets through.
        beta: (O,), how much of the learned weight it takes.
        decays: weight decay leaves this module's parameters alone.
    """

    decays = False

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((channels_out,), ALPHA))
        self.beta = nn.Parameter(torch.full((channels_out,), BETA))

    def forward(self, weight: Tensor) -> Tensor:
        """`alpha * delta + beta * W`: (O, I, h, w), odd h and w, to the same shape; output o >= I has no delta."""
        channels_out, channels_in, height, width = weight.shape
        identity = torch.eye(channels_out, channels_in, device=weight.device, dtype=weight.dtype)
        centre = (self.alpha[:, None] * identity)[:, :, None, None]
        delta = functional.pad(centre, (width // 2, width // 2, height // 2, height // 2))
        return delta + self.beta[:, None, None, None] * weight


class DiracConv2d(nn.Conv2d):
    """A convolution of odd kernel, one group and no bias, whose own `weight` is W.

    Args:
        plain: whose shape, stride, padding and weight it takes.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(plain.in_channels, plain.out_channels, **_geometry(plain))
        self.weight = plain.weight
        self.dirac = Dirac(plain.out_channels)

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        y: Tensor = self._conv_forward(input, self.dirac(self.weight), None)
        return y

    def folded(self) -> nn.Conv2d:
        """The same function as a plain convolution."""
        plain = nn.Conv2d(self.in_channels, self.out_channels, **_geometry(self))
        plain.weight = nn.Parameter(self.dirac(self.weight).detach(), requires_grad=self.weight.requires_grad)
        return plain.train(self.training)


def _geometry(like: nn.Conv2d) -> dict[str, Any]:
    return {"kernel_size": like.kernel_size, "stride": like.stride, "padding": like.padding, "bias": False}


def fold_dirac(net: nn.Module) -> nn.Module:
    """Copy a network, its Dirac convolutions as plain ones: the same function, exactly."""
    return fold_in_place(copy.deepcopy(net))


def fold_in_place(net: nn.Module) -> nn.Module:
    """Make a network's Dirac convolutions plain ones, for good: the same function, exactly; the same network."""
    for name, module in list(net.named_modules()):
        if isinstance(module, DiracConv2d):
            net.set_submodule(name, module.folded())
    return net


def undecayed(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of all modules that say, by `decays = False`, that weight decay is not for them."""
    return [
        parameter
        for module in net.modules()
        if not getattr(module, "decays", True)
        for parameter in module.parameters()
    ]
