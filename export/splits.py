"""The images behind a bundle, decoded anew from its recipe: some to calibrate with, D_v, test. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cascade.errors import BundleError
from cascade.figures import Sample, accuracy, mean_energy, running_sums
from cascade.manifest import Manifest, Preprocess
from cascade.pixels import normalise
from export.session import Array, Session
from training.settings import DataConfig
from training.sources import decode
from training.splits import draw_dv, fingerprint, measured

RUN = 100  # images that are run at once
ENERGY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Part:
    """Images of one split: pixels (N, 3, S, S) uint8, labels (N,) int64."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rule: Preprocess

    def inputs(self, start: int = 0, end: int | None = None) -> Array:
        """Network input, (n, 3, S, S) float32."""
        return normalise(self.pixels[start:end], self.rule)

    def sample(self, sessions: Sequence[Session], costs: Sequence[int]) -> Sample:
        """Every stage's logits for every image; sessions have the rule, `costs` are MACs a stage."""
        logits = [session.in_batches(self.pixels, RUN) for session in sessions]
        return Sample(self.name, self.labels, logits, costs)


@dataclass(frozen=True)
class Splits:
    """What a bundle is derived with.

    Attributes:
        train: training images, none of them in D_v unless the recipe trains on D_v; in random order.
        dv: D_v.
        test: for figures alone.
        fingerprint: of D_v.
    """

    train: Part
    dv: Part
    test: Part
    fingerprint: str


def load(config: DataConfig, calibration_images: int, *, quiet: bool = False) -> Splits:
    """Decode the data set and cut it as training did.

    Args:
        config: the recipe's.
        calibration_images: how many training images to keep.
        quiet: show no progress.

    Raises:
        RecipeError: the data set is unknown, missing or broken.
    """
    decoded = decode(config, config.rule(), Console(stderr=True, quiet=quiet))
    train, dv = draw_dv(len(decoded.train_labels), config)
    rule = measured(config, decoded.train_images, train)
    apart = np.setdiff1d(train, dv)
    drawn = np.random.default_rng([config.split_seed, 2]).permutation(apart)[:calibration_images]

    def part(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Part:
        return Part(name, np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels, rule)

    return Splits(
        part("train", decoded.train_images[drawn], decoded.train_labels[drawn]),
        part("dv", decoded.train_images[dv], decoded.train_labels[dv]),
        part("test", decoded.test_images, decoded.test_labels),
        fingerprint(dv, decoded.train_labels[dv]),
    )


def check(splits: Splits, manifest: Manifest, dv: Sample) -> None:
    """These are the images that the bundle was made with.

    Args:
        splits: decoded anew.
        manifest: of the bundle.
        dv: its stages' logits on the D_v of `splits`.

    Raises:
        BundleError: D_v has another fingerprint, images are preprocessed otherwise, or the bundle's figures on D_v are
            others.
    """
    rule = manifest.exit.rule
    if rule.fingerprint is not None and rule.fingerprint != splits.fingerprint:
        raise BundleError(
            "exit.rule.fingerprint", "the recipe draws another D_v: name the recipe and the images the bundle is from"
        )
    if manifest.preprocess != splits.dv.rule:
        raise BundleError("preprocess", f"the recipe gives {splits.dv.rule}, the bundle has {manifest.preprocess}")
    if manifest.calibration is None:
        return
    for number, (logits, figures) in enumerate(
        zip(running_sums(dv.stage_logits), manifest.calibration.sums, strict=True)
    ):
        found, energy = accuracy(logits, dv.labels), mean_energy(logits)
        off = abs(energy - (energy if figures.energy is None else figures.energy))
        if abs(found - figures.accuracy) * len(dv.labels) > 2 or off > ENERGY_TOLERANCE:
            raise BundleError(
                f"calibration.sums[{number}]",
                f"on these images accuracy is {found:.4f} and energy {energy:.6f}, the bundle says "
                f"{figures.accuracy:.4f} and {figures.energy}: these are not the images it was made with",
            )
