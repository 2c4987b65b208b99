"""FitNet: the student's map at one stage, through a regressor, becomes the teacher's.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, arXiv 1412.6550, Eq. 3: `1/2 |u_h(x) - r(v_g(x))|^2`.

Differences: the mean over all elements, without the half, and one joint phase instead of hint training first, as both
benchmarks have it. The regressor ends in batch norm and ReLU there. Which convolution it is depends on the sizes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from training.methods.base import Batch, Networks, TrainingSet, register
from training.methods.distiller import Distiller, DistillerConfig, Shape
from training.methods.maps import pooled
from training.models.contract import Features


@register("fitnet")
class FitNet(Distiller):
    """Hints: one stage of the student imitates the same stage of the teacher."""

    class Config(DistillerConfig):
        """`hint`: which map, 0 = the stem's, 1 = the first stage's."""

        BENCHES: ClassVar[dict[str, dict[str, Any]]] = {
            "crd": {"weight": 100.0, "hint": 2},
            "simkd": {"weight": 100.0, "hint": 1},
        }
        hint: Annotated[int, Field(ge=0)] = 2

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        maps = min(len(self.shapes.student), len(self.shapes.teacher)) - 1
        if config.hint >= maps:
            raise RecipeError(f"method 'fitnet': hint {config.hint} is no map of both networks: take 0 to {maps - 1}")
        student, teacher = self.shapes.student[config.hint], self.shapes.teacher[config.hint]
        self.regressor = Regressor(self.name, student, teacher, shrinks_teacher=config.bench == "simkd")

    def compare(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The mean squared difference at the hint."""
        guess, target = self.regressor(student.maps[self.config.hint]), teacher.maps[self.config.hint]
        return hint_loss(guess, pooled(target, *guess.shape[2:]))


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean (s - t)^2` over all elements of two maps (B, C, H, W)."""
    return functional.mse_loss(student, teacher)


class Regressor(nn.Module):
    """One convolution that turns a student's map into the shape of a teacher's, then batch norm, then perhaps ReLU.

    Args:
        method: whose it is, for messages.
        student: (C, H, W).
        teacher: (C', H', W').
        relu: end in ReLU.
        shrinks_teacher: where the student's map is smaller and not by half, keep its size, so that the teacher's has to
            be pooled to it; otherwise such pairs are refused.

    Raises:
        RecipeError: no convolution leads from the one size to the other.
    """

    def __init__(
        self, method: str, student: Shape, teacher: Shape, *, relu: bool = True, shrinks_teacher: bool = False
    ) -> None:
        super().__init__()
        (channels, side, _), (wanted, target, _) = student, teacher
        if side == 2 * target:
            convolution: nn.Module = nn.Conv2d(channels, wanted, 3, 2, 1)
        elif 2 * side == target:
            convolution = nn.ConvTranspose2d(channels, wanted, 4, 2, 1)
        elif side >= target:
            convolution = nn.Conv2d(channels, wanted, 1 + side - target)
        elif shrinks_teacher:
            convolution = nn.Conv2d(channels, wanted, 3, 1, 1)
        else:
            raise RecipeError(
                f"method {method!r} cannot bring a student's map of {side} x {side} to the teacher's {target} x "
                f"{target}: take a student whose maps are as large, larger, or half as large"
            )
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(wanted), nn.ReLU() if relu else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        y: Tensor = self.layers(x)
        return y
