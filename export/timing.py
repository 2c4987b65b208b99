"""How long each stage of a bundle takes for one image on this machine."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cascade.bundle import Bundle
from export.profiles import Timing
from export.session import sessions

WARM_UP, RUNS = 20, 200


def measure(bundle: Bundle, runs: int = RUNS) -> Timing:
    """Run each stage at batch 1, on one thread of the CPU, and take the median.

    The stages take turns, so that whatever else the machine does meanwhile falls on all of them.

    Args:
        bundle: verified.
        runs: of each stage.
    """
    loaded, side = sessions(bundle.models), bundle.manifest.preprocess.size
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    took = np.empty((WARM_UP + runs, len(loaded)))
    for turn in took:
        for stage, session in enumerate(loaded):
            began = time.perf_counter()
            session.run(image)
            turn[stage] = time.perf_counter() - began
    medians = np.median(took[WARM_UP:], axis=0) * 1000
    return Timing(tuple(float(value) for value in medians), hardware())


def hardware() -> str:
    """The processor and what ran on it, for people."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:  # only Linux has it
        pass
    return f"{cpu}, one thread, onnxruntime {ort.__version__}, CPU"
