"""How long a stage takes an image, one thread on this CPU: rounds in which each contender has its turn; medians."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from export.session import Array, Session

BATCHES = (1, 8)
WINDOW_S = 0.004  # of one contender in one round: long beside the clock, short beside whatever else the machine does

Seconds = dict[int, float]


def stage_seconds(contenders: Mapping[str, bytes], images: Array, rounds: int = 21) -> dict[str, Seconds]:
    """Time ONNX files against each other.

    Args:
        contenders: name -> ONNX file.
        images: (B, 3, S, S) float32, at least as many as the largest batch.
        rounds: in each, every contender runs for a few milliseconds at every batch size.

    Returns:
        name -> batch size -> median seconds an image.
    """
    opened = {name: Session(model, name) for name, model in contenders.items()}
    parts = {batch: np.ascontiguousarray(images[:batch]) for batch in BATCHES}
    found: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in opened}
    for _ in range(rounds):
        for name, session in opened.items():
            for batch, part in parts.items():
                session.run(part)
                found[name][batch].append(_seconds(session, part) / batch)
    return {name: {batch: float(np.median(each)) for batch, each in times.items()} for name, times in found.items()}


def _seconds(session: Session, images: Array) -> float:
    runs, began = 0, time.perf_counter()
    while True:
        session.run(images)
        runs += 1
        if (passed := time.perf_counter() - began) >= WINDOW_S:
            return passed / runs
