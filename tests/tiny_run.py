"""A whole run in a few seconds: real digits at 8 x 8 pixels, networks of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.recipe import Recipe, parse
from training.run import Run
from training.steps import run_recipe

DOCUMENT: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "data": {"name": "digits", "size": 8, "augment": {"pad": 1, "flip": False}, "dv_fraction": 0.2, "dv_exclude": True},
    "runtime": {"device": "cpu", "threads": 1},
    "schedule": {"epochs": 2, "batch_size": 32, "lr": 0.2, "policy": "one_cycle"},
    "teacher": {"model": "resnet8_0.5_a", "method": {"name": "vanilla"}},
    "student": {"model": "resnet8_0.25_a", "method": {"name": "kd"}},
    "residual": {"models": ["resnet8_0.25_a"], "method": {"name": "res_kd"}, "stop": {"count": 2}},
}


def document(**changes: Any) -> dict[str, Any]:
    """The recipe as plain values, with whole parts of it replaced; None leaves a part out."""
    merged = {**DOCUMENT, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def tiny_recipe(**changes: Any) -> Recipe:
    """The recipe, checked."""
    return parse(document(**changes), "tiny")


def train_tiny(folder: Path, reuse: Sequence[Path] = (), **changes: Any) -> Run:
    """Train it."""
    return run_recipe(tiny_recipe(**changes), folder, quiet=True, reuse=reuse)
