"""The last step of a recipe: its bundle, made anew only where something before it has changed.

What the bundle follows from is hashed: the recipe, what `export` asks for, and every network of the cascade and its
teacher. The hash lies in the run as `steps/export/step.json`. A bundle that was calibrated or signed since is still the
one that was made, and stays.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click

from cascade import bundle
from cascade.errors import BundleError
from export import make
from training import checkpoint
from training.run import Run

STEP = "export"


def last(run: Run, *, quiet: bool = False) -> None:
    """Make the bundle that a run's recipe asks for, unless it is there.

    Args:
        run: finished; its recipe has an `export`.
        quiet: show no progress.

    Raises:
        CascadeError: it cannot be made.
    """
    config = run.recipe.export
    assert config is not None, "whoever calls has looked"
    out, key = run.folder / config.folder, key_of(run)
    if run.is_done(STEP) and run.figures(STEP) == {"key": key} and _is_whole(out):
        click.echo(f"{out} stays: nothing before it changed")
        return
    if config.precision == "fp32":
        make.build(run.folder, out, version=config.version, quiet=quiet)
    else:
        make.derive(run.folder, out, config.precision, version=config.version, quiet=quiet)
    if config.fused:
        make.fuse(out, out, pixels=config.pixels)
    checkpoint.write_json(run.step(STEP) / "step.json", {"key": key})


def key_of(run: Run) -> str:
    """What the bundle follows from, as 16 hex digits."""
    config = run.recipe.export
    assert config is not None, "whoever calls has looked"
    teacher = run.teacher()
    networks = [
        bundle.sha256((run.step(step) / "network.safetensors").read_bytes())
        for step in (*run.stages(), *([teacher] if teacher else []))
    ]
    parts = {"recipe": run.recipe.run_id(), "export": config.model_dump(mode="json"), "networks": networks}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    try:
        bundle.read(folder)
    except BundleError:
        return False
    return True
