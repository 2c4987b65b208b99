"""Training for network slimming: a penalty that draws the scales of batch norms to zero, beside any method's losses.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, Eq. 1 with g = |.| and
cross-entropy. "Residual Distillation" (JointRD), 2020, rebuttal, cuts plain networks that learn through a ResNet: their
method goes on as it is, and `l1` joins it in the turn in which the student moves.
What is cut afterwards is `training.pruning.slimming`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from cascade.errors import RecipeError
from training.methods.base import Batch, Method, MethodConfig, Networks, Phase, TrainingSet, find, register


@register("slimming")
class Slimming(Method):
    """Another method's losses, and the sum of all |scales| of batch norms that learn and will be deployed."""

    class Config(MethodConfig):
        """`l1`: weight of the penalty; the paper has 1e-4 and 1e-5. `of`: the other method, default cross-entropy."""

        INNER: ClassVar[tuple[str, ...]] = ("of",)

        l1: Annotated[float, Field(ge=0)] = 1e-4
        of: dict[str, Any] = Field(default_factory=lambda: {"name": "vanilla"})

        @field_validator("of")
        @classmethod
        def _of_a_whole_network(cls, given: dict[str, Any]) -> dict[str, Any]:
            try:
                kind, _ = find(given)
            except RecipeError as error:
                raise ValueError(str(error)) from error
            if issubclass(kind, Slimming) or kind.needs_start:
                raise ValueError(f"slimming goes around a method that trains a whole network, not around {kind.name}")
            return given

    needs_teacher = False
    takes_several_teachers = True

    def __init__(self, config: Config, nets: Networks, data: TrainingSet) -> None:
        kind, inner = find(config.of)
        trained = kind(inner, nets, data)
        super().__init__(config, trained.nets, data)
        self.inner = trained

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the other method, and `l1`."""
        found = self.inner.losses(batch)
        if batch.turn == self.own_turn():
            drawn = [scale.abs().sum() for scale in scales(self.deployable())]
            found["l1"] = self.config.l1 * torch.stack(drawn).sum()
        return found

    def trainable(self) -> Iterator[nn.Parameter]:
        """As the other method."""
        return self.inner.trainable()

    def deployed_name(self, student: str, teachers: tuple[str, ...]) -> str:
        """As the other method."""
        return self.inner.deployed_name(student, teachers)

    def other_heads(self) -> dict[str, nn.Module]:
        """As the other method."""
        return self.inner.other_heads()

    def deployable(self) -> nn.Module:
        """As the other method."""
        return self.inner.deployable()

    def turns(self) -> int:
        """As the other method."""
        return self.inner.turns()

    def own_turn(self) -> int:
        """As the other method."""
        return self.inner.own_turn()

    def phases(self) -> tuple[Phase, ...]:
        """As the other method."""
        return self.inner.phases()

    def make_batch(self, draw: Callable[[], Batch]) -> Batch:
        """As the other method."""
        return self.inner.make_batch(draw)

    def optimizers(self) -> dict[str, Optimizer]:
        """As the other method."""
        return self.inner.optimizers()

    def pictures(self) -> Tensor | None:
        """As the other method."""
        return self.inner.pictures()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the other method: it has all there is, and the student once."""
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the other method."""
        return self.inner.load_state_dict(*args, **kwargs)


def scales(net: nn.Module) -> list[nn.Parameter]:
    """The scale of every batch norm that learns.

    Raises:
        RecipeError: there is none.
    """
    norms = (module.weight for module in net.modules() if isinstance(module, nn.BatchNorm2d) and module.affine)
    found = [scale for scale in norms if scale.requires_grad]
    if not found:
        raise RecipeError("method 'slimming' draws the scales of batch norms to zero, and the network has none")
    return found
