"""A generator of images: noise in, colours in [0, 1] out.

Source: the generator of Chen et al., "Data-Free Learning of Student Networks", 2019, arXiv 1904.01186, which is DCGAN's
with upsampling in place of transposed convolutions, as the code of Fang et al., "Contrastive Model Inversion for
Data-Free Knowledge Distillation", 2021, arXiv 2105.08584, uses it for every method, with a first map twice as deep
where the generator stays. Colours end in a sigmoid and are normalised afterwards, where DAFL's own code ends in a tanh
and a batch norm without scales.
"""

from __future__ import annotations

from torch import Tensor, nn

from cascade.errors import RecipeError

SLOPE = 0.2
DEVIATION = 0.02


class Double(nn.Module):
    """Nearest-neighbour upsampling by two, whose gradient is the same every time on a GPU too."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        count, channels, height, width = x.shape
        repeated = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return repeated.reshape(count, channels, 2 * height, 2 * width)


class Generator(nn.Sequential):
    """A linear layer to a quarter of the size, and three convolutions with upsampling before two of them.

    Args:
        noise: numbers that an image is made of.
        first: channels of the first map.
        width: channels of the last hidden map; the one before has twice as many.
        size: S, pixels a side of the images.

    Raises:
        RecipeError: the size is no multiple of four.
    """

    def __init__(self, noise: int, first: int, width: int, size: int) -> None:
        if size % 4:
            raise RecipeError(f"a generator doubles its maps twice, and data.size {size} is no multiple of 4: take one")
        wide, side = 2 * width, size // 4
        super().__init__(
            nn.Linear(noise, first * side**2),
            nn.Unflatten(1, (first, side, side)),
            nn.BatchNorm2d(first),
            Double(),
            nn.Conv2d(first, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.LeakyReLU(SLOPE),
            Double(),
            nn.Conv2d(wide, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 3, 3, padding=1),
            nn.Sigmoid(),
        )


def restart(net: nn.Module) -> None:
    """Draw a generator's weights anew: N(0, 0.02), scales of batch norms N(1, 0.02), no bias; as DCGAN begins."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
