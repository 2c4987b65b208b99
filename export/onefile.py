"""Bundle to bundle: the same cascade, with all of it in one more ONNX file. Needs onnx and no torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cascade import bundle
from cascade.bundle import Bundle
from cascade.files import Fused, ImageType
from cascade.manifest import Manifest
from export import whole
from export.fused import fuse
from export.parts import load
from export.pixel_input import taking, taking_floats
from export.session import sessions

FILE = "cascade.onnx"
SAMPLES = 7


def fused_bundle(source: Bundle, *, pixels: bool = False) -> Bundle:
    """Put a whole cascade beside its stages, checked against them.

    Args:
        source: with or without such a file.
        pixels: put preprocessing into the graph, so that images are uint8 of any size.

    Raises:
        BundleError: a stage or the preprocessing cannot be made part of a graph, or the result does something else than
            the stages.
    """
    manifest = source.manifest
    rule = manifest.preprocess
    stages = [taking_floats(load(model, f"stages[{number}].file"), rule) for number, model in enumerate(source.models)]
    model = fuse(stages, manifest.exit.definition, pixels=rule if pixels else None, notes=notes(manifest))
    data: bytes = model.SerializeToString(deterministic=True)
    inputs, outputs = whole.Whole(data).signature()
    field = Fused(file=FILE, sha256=bundle.sha256(data), inputs=inputs, outputs=outputs, pixels=pixels)
    made = Bundle(
        bundle.parse({**manifest.document(), "fused": field.model_dump(mode="json")}),
        source.models,
        source.golden,
        data,
    )
    noise = np.random.default_rng(0).integers(0, 256, (SAMPLES, 3, rule.size, rule.size), np.uint8)
    whole.check(made, sessions(made.models, rule), noise)
    return made


def notes(manifest: Manifest) -> dict[str, str]:
    """What the file says of itself, for whoever has nothing else: labels and threshold are JSON."""
    return {
        "name": manifest.name,
        "version": manifest.version,
        "labels": json.dumps(manifest.labels, ensure_ascii=False),
        "threshold": json.dumps(manifest.exit.threshold),
        "definition": manifest.exit.definition,
    }


def export(
    source: Path,
    out: Path,
    *,
    pixels: bool,
    name: str | None = None,
    version: str | None = None,
    takes: ImageType | None = None,
) -> Bundle:
    """Write a bundle that holds its cascade in one file as well.

    Args:
        source: folder of a bundle.
        out: folder of the new one; may be the same.
        pixels: as above.
        pixels: let the file take uint8 images of any size.
        name: of the new one; default the source's.
        version: of the new one; default the source's.
        takes: what the stages beside the one file take; default what they take in the source.

    Raises:
        BundleError: as above; or one of the bundles cannot be read or written, or the name or version is none.
    """
    read = bundle.read(source)
    given = {key: value for key, value in (("name", name), ("version", version)) if value is not None}
    renamed = Bundle(bundle.parse({**read.manifest.document(), "fused": None, **given}), read.models, read.golden)
    made = fused_bundle(taking(renamed, takes) if takes else renamed, pixels=pixels)
    bundle.write(out, made.manifest, made.files())
    return made
