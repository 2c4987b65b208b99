"""How long each stage of a bundle takes for one image on this machine, and what this machine is."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cascade.bundle import Bundle
from export.profiles import Timing
from export.timing import BATCHES, stage_seconds

ROUNDS = 41


def measure(bundle: Bundle, rounds: int = ROUNDS) -> Timing:
    """Run each stage at batch 1 on pixels, on one thread of the CPU, and take the median.

    The stages take turns, so that whatever else the machine does meanwhile falls on all of them.

    Args:
        bundle: verified.
        rounds: in each, every stage has its turn.
    """
    rule = bundle.manifest.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), 3, rule.size, rule.size), np.uint8)
    contenders = {f"stages[{number}]": model for number, model in enumerate(bundle.models)}
    found = stage_seconds(contenders, pixels, rounds, rule)
    return Timing(tuple(1000 * found[name][1] for name in contenders), hardware())


def hardware() -> str:
    """The processor and what ran on it, for people."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:  # only Linux has it
        pass
    return f"{cpu}, one thread, onnxruntime {ort.__version__}, CPU"
