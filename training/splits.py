"""Which samples are whose: D_v drawn from the training part, and what a split is known by; numpy alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from training.settings import DataConfig, Rgb

Index = NDArray[np.int64]


def draw_dv(samples: int, config: DataConfig) -> tuple[Index, Index]:
    """Draw D_v uniformly from the training part.

    Returns:
        The indices to train on and those of D_v, each ascending. They overlap unless D_v is excluded.

    Source: ResKD, Algorithm 1. The size is not given there.
    """
    generator = np.random.default_rng([config.split_seed, 1])
    count = max(1, round(config.dv_fraction * samples))
    dv = np.sort(generator.permutation(samples)[:count]).astype(np.int64)
    everything = np.arange(samples, dtype=np.int64)
    return (np.setdiff1d(everything, dv) if config.dv_exclude else everything), dv


def measure(images: NDArray[np.uint8], index: Index) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of each channel over the given samples, in [0, 1] units, to six digits."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(index), 4096):
        part = images[index[start : start + 4096]].reshape(-1, 3).astype(np.float64) / 255
        total, squares, count = total + part.sum(0), squares + (part**2).sum(0), count + len(part)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    rounded_mean, rounded_std = (tuple(round(float(value), 6) for value in values) for values in (mean, std))
    return (rounded_mean[0], rounded_mean[1], rounded_mean[2]), (rounded_std[0], rounded_std[1], rounded_std[2])


def fingerprint(index: Index, labels: Index) -> str:
    """sha256 over the indices and labels of a split's samples, (n,) each: which samples these are."""
    digest = hashlib.sha256(index.astype("<i8").tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
