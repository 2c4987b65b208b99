"""How long networks take on this machine: onnxruntime on the CPU, one thread, in rounds that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from export.session import Session

WARM_UP = 2


def latencies(models: Sequence[bytes], size: Sequence[int], batches: Sequence[int], rounds: int) -> list[list[float]]:
    """Time every network at every batch size.

    Every round times each of them once, so that whatever else the machine does in between falls on all alike. A run
    that is not timed goes before each, since the one before it has emptied the caches.

    Args:
        models: ONNX files.
        size: pixels a side of the images of each.
        batches: batch sizes.
        rounds: timed runs of each; the median counts.

    Returns:
        Seconds of one run, for each model a list by batch size.

    Raises:
        BundleError: onnxruntime cannot run one of them.
    """
    sessions = [Session(model, f"network {number}") for number, model in enumerate(models)]
    random = np.random.default_rng(0)
    cases = [
        (session, random.normal(size=(batch, 3, side, side)).astype(np.float32))
        for session, side in zip(sessions, size, strict=True)
        for batch in batches
    ]
    times: list[list[float]] = [[] for _ in cases]
    for turn in range(WARM_UP + rounds):
        for (session, images), found in zip(cases, times, strict=True):
            session.run(images)
            began = time.perf_counter()
            session.run(images)
            if turn >= WARM_UP:
                found.append(time.perf_counter() - began)
    medians = [statistics.median(found) for found in times]
    return [medians[start : start + len(batches)] for start in range(0, len(medians), len(batches))]
