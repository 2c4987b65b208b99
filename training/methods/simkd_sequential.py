"""A classifier of its own for a body that SimKD trained: the body is frozen, batch norms included.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, arXiv 2203.14001, tables 4 and
S.6. The classifier reads the student's own pooled map, not what the projector makes of it, and learns from the labels.
The body comes from another run: `student: {start: RUN, ...}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.methods.base import Batch, Method, Networks, TrainingSet, register
from training.methods.simkd import networks_of


@register("simkd_sequential")
class Sequential(Method):
    """Cross-entropy for the classifier alone, on a frozen body."""

    needs_teacher = False
    needs_start = True

    def __init__(self, config: Method.Config, nets: Networks, data: TrainingSet) -> None:
        super().__init__(config, nets, data)
        self.body = (networks_of(self.name, nets)[0],)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce`."""
        (net,) = self.body
        with torch.no_grad():
            vector = net.pool(net.pre_pool(batch.images))
        return {"ce": functional.cross_entropy(net.classifier(vector).float(), batch.labels)}

    def trainable(self) -> Iterator[nn.Parameter]:
        """The classifier."""
        return self.body[0].classifier.parameters()

    def train(self, mode: bool = True) -> Self:
        """The student stays in eval mode, so that its batch norms keep what they know."""
        super().train(mode)
        self.student.eval()
        return self
