"""Which samples are whose: D_v drawn from the training part, and what a split is known by; numpy alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from cascade.manifest import Preprocess
from training.settings import DataConfig, Rgb

Index = NDArray[np.int64]

AT_ONCE = 4096 * 32 * 32  # pixels whose squares are summed at once


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


def measured(config: DataConfig, images: NDArray[np.uint8], index: Index) -> Preprocess:
    """The config's rule with the mean and the standard deviation that it names, or those of the given samples."""
    if config.mean is not None and config.std is not None:
        return config.rule()
    mean, std = measure(images, index)
    return config.rule().model_copy(update={"mean": config.mean or mean, "std": config.std or std})


def measure(images: NDArray[np.uint8], index: Index) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of each channel over the given samples, in [0, 1] units, to six digits."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    step = min(4096, max(1, AT_ONCE // (images.shape[1] * images.shape[2])))
    for start in range(0, len(index), step):
        part = images[index[start : start + step]].reshape(-1, 3).astype(np.float64) / 255
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
