"""A first phase that trains a student's stem and stages, and nothing that lies behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from torch import nn

from training.methods.base import Method, MethodConfig, Networks, TrainingSet
from training.models.contract import Network


class BodyPhase(Method):
    """Connectors, stem and stages learn; what lies behind the stages stays as it is, in eval mode.

    Args:
        config: of the method that comes after.
        nets: student and teacher.
        data: what it will be trained on.
        connectors: what brings the student's maps to the teacher's shapes.
    """

    def __init__(self, config: MethodConfig, nets: Networks, data: TrainingSet, connectors: nn.ModuleList) -> None:
        super().__init__(config, nets, data)
        self.connectors = connectors

    def feature_modules(self) -> tuple[nn.Module, nn.Module]:
        """Stem and stages of the student."""
        assert isinstance(self.student, Network), "checked at construction of the method that comes after"
        return self.student.stem, self.student.stages

    def trainable(self) -> Iterator[nn.Parameter]:
        """Connectors, stem and stages."""
        for part in (*self.feature_modules(), self.connectors):
            yield from part.parameters()

    def train(self, mode: bool = True) -> Self:
        """Training mode, for what learns alone."""
        super().train(mode)
        self.student.eval()
        for part in self.feature_modules():
            part.train(mode)
        return self
