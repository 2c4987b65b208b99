"""What the families are made of: convolution, batch norm and ReLU, and the shuffle of channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Kernel = int | tuple[int, int]


def conv_norm(
    channels_in: int,
    channels_out: int,
    kernel: Kernel,
    stride: int = 1,
    *,
    padding: Kernel | None = None,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """A convolution and its batch norm; unless told otherwise it pads so that stride 1 keeps the size."""
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class Activated(nn.Module):
    """A module, then ReLU or another activation."""

    def __init__(self, body: nn.Module, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.body = body
        self.activation = activation

    def preact(self, x: Tensor) -> Tensor:
        """Without the activation."""
        before: Tensor = self.body(x)
        return before

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        active: Tensor = self.activation(self.preact(x))
        return active


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels out anew, one of each group in turn. Source: ShuffleNet, 2018, section 3.1."""
    dealt: Tensor = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return dealt
