"""Runs of a teacher and a student, an epoch each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_run import train_tiny
from training.run import Run

EPOCH = {"epochs": 1, "batch_size": 256, "lr": 0.1, "policy": "cosine"}
SMALL = "resnet8_0.125_a"
VANILLA, KD = {"name": "vanilla"}, {"name": "kd"}
QUICK: dict[str, Any] = {
    "schedule": EPOCH,
    "teacher": {"model": SMALL, "method": VANILLA},
    "student": {"model": SMALL, "method": KD},
    "residual": None,
}


def quick(folder: Path, **changes: Any) -> Run:
    """A teacher and a student, an epoch each."""
    return train_tiny(folder, **{**QUICK, **changes})
