"""Figures of several workers add up, and what a dead one held is forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.metrics import FOLDER_VARIABLE, Metrics, shared_folder

ROOT = Path(__file__).parents[2]
WORKER = """
from server.metrics import Metrics, shared_folder
metrics = Metrics(shared_folder())
model = metrics.of_model("cat", [10, 20])
metrics.arrived()
metrics.arrived()
metrics.answered("/predict", "POST", 200, 0.01)
model.ran(1, 4, 0.001, 3, 0)
model.queued([2, 1], 3)
metrics.flush()
"""


def run_worker(folder: Path) -> int:
    """A worker that counts a little and ends; gives its process id."""
    environment = {**os.environ, FOLDER_VARIABLE: str(folder)}
    process = subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT, env=environment)
    assert process.wait() == 0
    return process.pid


def test_counts_of_all_workers_add_up_and_those_of_the_dead_stay(tmp_path: Path) -> None:
    first, _ = run_worker(tmp_path), run_worker(tmp_path)
    (tmp_path / f"gauge_livesum_{first}.db").rename(tmp_path / f"gauge_livesum_{os.getpid()}.db")
    lines = Metrics(tmp_path).render().decode().splitlines()
    for line in (
        'rescade_requests_total{method="POST",path="/predict",status="200"} 2.0',
        'rescade_exits_total{model="cat",stage="1"} 6.0',
        'rescade_batch_size_sum{model="cat",stage="1"} 8.0',
        "rescade_requests_in_flight 1.0",
        'rescade_queue_depth{model="cat",stage="0"} 2.0',
        'rescade_images_in_flight{model="cat"} 3.0',
    ):
        assert line in lines
    assert len(list(tmp_path.glob("gauge_live*"))) == 1


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert shared_folder() is None
    monkeypatch.setenv(FOLDER_VARIABLE, "/x")
    assert shared_folder() == Path("/x")
