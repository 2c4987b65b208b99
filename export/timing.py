"""How long networks take on this machine: one thread on the CPU, in rounds in which each has its turn; medians."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cascade.manifest import Preprocess
from cascade.pixels import Pixels
from export.session import Array, Session

BATCHES = (1, 8)
WINDOW_S = 0.004  # of one contender in one round: long beside the clock, short beside whatever else the machine does

Seconds = dict[int, float]


def stage_seconds(
    contenders: Mapping[str, bytes], images: Array | Pixels, rounds: int = 21, rule: Preprocess | None = None
) -> dict[str, Seconds]:
    """Time ONNX files that take the same images against each other.

    Args:
        contenders: name -> ONNX file.
        images: (B, 3, S, S), normalised as float32 or pixels as uint8, at least as many as the largest batch.
        rounds: in each, every contender runs for a few milliseconds at every batch size.
        rule: how pixels are normalised for those that take floats, which is then part of their time.

    Returns:
        name -> batch size -> median seconds an image.
    """
    parts: list[Any] = [np.ascontiguousarray(images[:batch]) for batch in BATCHES]
    opened = [Session(model, name, rule) for name, model in contenders.items()]
    cases: list[tuple[Session, Array | Pixels]] = [(session, part) for session in opened for part in parts]
    found = iter(_medians(cases, rounds))
    return {name: {batch: next(found) / batch for batch in BATCHES} for name in contenders}


def latencies(models: Sequence[bytes], size: Sequence[int], batches: Sequence[int], rounds: int) -> list[list[float]]:
    """Time ONNX files, each with images of its own size and type, against each other.

    Args:
        models: ONNX files.
        size: pixels a side of the images of each.
        batches: batch sizes.
        rounds: in each, every file runs for a few milliseconds at every batch size.

    Returns:
        Median seconds of one run, for each file a list by batch size.

    Raises:
        BundleError: onnxruntime cannot run one of them.
    """
    opened = [Session(model, f"network {number}") for number, model in enumerate(models)]
    cases: list[tuple[Session, Array | Pixels]] = [
        (session, _noise(session, batch, side)) for session, side in zip(opened, size, strict=True) for batch in batches
    ]
    found = _medians(cases, rounds)
    return [found[start : start + len(batches)] for start in range(0, len(found), len(batches))]


def _noise(session: Session, batch: int, side: int) -> Array | Pixels:
    """Images of the type that a graph takes."""
    random, shape = np.random.default_rng(0), (batch, 3, side, side)
    if session.takes.dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.normal(size=shape).astype(np.float32)


def _medians(cases: Sequence[tuple[Session, Array | Pixels]], rounds: int) -> list[float]:
    """Seconds of one run of each. One that does not count goes before, since the case before has emptied the caches."""
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for (session, images), found in zip(cases, times, strict=True):
            session.run(images)
            found.append(_seconds(session, images))
    return [float(np.median(found)) for found in times]


def _seconds(session: Session, images: Array | Pixels) -> float:
    runs, began = 0, time.perf_counter()
    while True:
        session.run(images)
        runs += 1
        if (passed := time.perf_counter() - began) >= WINDOW_S:
            return passed / runs
