"""Golden samples for a bundle: chosen from D_v, run through the exported stages, and declared in the manifest.

Source of the rule by which they are chosen: `cascade.golden.choose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.files import GoldenFile
from cascade.golden import FIELD, Golden, choose, extremes_of, pack
from cascade.manifest import Manifest
from cascade.pixels import Pixels
from cascade.replay import replay
from export.session import Array, Session, sessions

FILE = "golden.npz"
SAMPLES = 12
CANDIDATES = 2500
# What another machine may change of a logit, as a share of a stage's largest. Between a graph as it is written and as
# onnxruntime rewrites it, both on one CPU, bundles/digits and bundles/cifar10 differ by up to 4e-7 of it in float32,
# 1e-4 in float16 and 7e-3 in int8, where a value between two steps may take either; float16 is up to 3e-3 from float32,
# and so may be devices that add up in it from others. The rest is room for hardware that nobody has tried.
SHARES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 3e-2}


def add(folder: Path, images: Pixels) -> Manifest:
    """Put golden samples into a bundle that is there already; older ones, and its signature, go.

    Args:
        folder: of the bundle.
        images: (N, S, S, 3) uint8, the size of the network, from D_v.

    Returns:
        The manifest that was written.

    Raises:
        BundleError: the bundle is not whole, or cannot be written.
    """
    read = bundle.read(folder)
    some = images[:CANDIDATES]
    planes = np.ascontiguousarray(some.transpose(0, 3, 1, 2))
    stages = sessions(read.models, read.manifest.preprocess)
    stage_logits = [session.in_batches(planes, 100) for session in stages]
    made = replace(make(read.manifest, read.models, some, stage_logits, stages), fused=read.fused)
    bundle.write(folder, made.manifest, made.files())
    return made.manifest


def make(
    manifest: Manifest,
    models: Sequence[bytes],
    images: Pixels,
    stage_logits: Sequence[Array],
    stages: Sequence[Session],
) -> Bundle:
    """A bundle with golden samples.

    Args:
        manifest: of the bundle; what it says of golden samples is replaced.
        models: one ONNX file a stage.
        images: (N, S, S, 3) uint8 to choose from.
        stage_logits: what the stages say of them, (N, K) a stage.
        stages: the models in onnxruntime, which know how pixels are normalised.
    """
    tolerance = tuple(
        float(np.float32(SHARES[stage.precision] * np.abs(logits).max()))
        for stage, logits in zip(manifest.stages, stage_logits, strict=True)
    )
    rows = choose(stage_logits, manifest, tolerance, SAMPLES)
    chosen = images[rows]
    planes = np.ascontiguousarray(chosen.transpose(0, 3, 1, 2))
    logits = [session.in_batches(planes, 1) for session in stages]
    exits = replay(logits, manifest.exit.threshold, manifest.exit.definition).stages
    data = pack(Golden(chosen, np.stack(logits), exits, extremes_of(manifest.preprocess)))
    declared = GoldenFile(file=FILE, sha256=bundle.sha256(data), samples=len(rows), tolerance=tolerance)
    return Bundle(manifest.model_copy(update={FIELD: declared}), tuple(models), data)


def from_recipe(folder: Path, recipe_path: Path, settings: tuple[str, ...] = (), *, quiet: bool = False) -> Manifest:
    """Put golden samples into a bundle from the D_v that its recipe draws.

    Args:
        folder: of the bundle.
        recipe_path: YAML file that the bundle's run had.
        settings: `key=value`, over the recipe's.
        quiet: show no progress.

    Raises:
        RecipeError: the recipe or its data set is wrong.
        BundleError: the D_v that is drawn is not the one that the threshold comes from, or is prepared otherwise.
    """
    from training.data import load
    from training.recipe import load as read_recipe

    manifest = bundle.read_manifest(folder)
    data = load(read_recipe(recipe_path, settings).data, quiet=quiet)
    wanted, found = manifest.exit.rule.fingerprint, data.dv.fingerprint()
    if wanted is not None and wanted != found:
        raise BundleError(
            "exit.rule.fingerprint",
            f"{recipe_path} draws a D_v with fingerprint {found}, the bundle's threshold comes from {wanted}: "
            "give the recipe, and the data, that the bundle was made with",
        )
    if data.preprocess != manifest.preprocess:
        raise BundleError(
            "preprocess", f"{recipe_path} prepares images by {data.preprocess}, the bundle by {manifest.preprocess}"
        )
    return add(folder, data.dv.images[data.dv.index[:CANDIDATES]].cpu().numpy())
