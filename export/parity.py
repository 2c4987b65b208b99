"""Torch against onnxruntime on real images: logits, argmax, and exit decisions. Run at every export.

Also onnxruntime against itself: a sample alone must leave where it leaves among others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cascade.combine import EnergyDefinition
from cascade.errors import BundleError
from cascade.replay import Replay, replay
from export.session import Array, Session

TOLERANCE = 1e-4
BATCHES = (1, 7)


@dataclass(frozen=True)
class Parity:
    """What was compared.

    Attributes:
        samples: real images.
        largest: largest difference between torch's and onnxruntime's logits, over all stages and batch sizes.
    """

    samples: int
    largest: float


def check(
    nets: Sequence[nn.Module],
    sessions: Sequence[Session],
    images: Array,
    threshold: float,
    definition: EnergyDefinition,
) -> Parity:
    """Compare every stage and the cascade's decisions, at batch 1 and batch 7.

    Args:
        nets: the torch networks, in stage order.
        sessions: the exported ones.
        images: (N, 3, H, W) float32, real and preprocessed.
        threshold: the bundle's.
        definition: the bundle's.

    Raises:
        BundleError: logits differ by more than 1e-4, or a class or an exit differs.
    """
    with torch.no_grad():
        expected = [net(torch.from_numpy(images)).float().numpy() for net in nets]
    reference = replay(expected, threshold, definition)
    largest = 0.0
    for batch in BATCHES:
        found = [session.in_batches(images, batch) for session in sessions]
        for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            difference = float(np.abs(ours - theirs).max())
            if not difference <= TOLERANCE:
                raise BundleError(
                    f"stages[{number}]",
                    f"the exported network's logits differ from torch's by {difference:.2g} at batch {batch}, "
                    f"more than {TOLERANCE}",
                )
            largest = max(largest, difference)
        _same_decisions(reference, replay(found, threshold, definition), batch)
    return Parity(len(images), largest)


def _same_decisions(expected: Replay, found: Replay, batch: int) -> None:
    for what, ours, theirs in (
        ("class", expected.classes, found.classes),
        ("exit stage", expected.stages, found.stages),
    ):
        if wrong := np.flatnonzero(ours != theirs).tolist():
            raise BundleError(
                "stages",
                f"sample {wrong[0]} has {what} {theirs[wrong[0]]} exported and {ours[wrong[0]]} in torch "
                f"(batch {batch}, {len(wrong)} samples differ)",
            )
