"""Counters and histograms, for one process or for several that share a folder.

With several workers each writes its figures to a file of its own in `PROMETHEUS_MULTIPROC_DIR`, and whichever worker is
asked sums them all. prometheus_client looks at that variable when it is imported, so the parent sets it before it
starts a worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
RUN_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Everything the server counts.

    Args:
        stage_count: stages of the cascade; each gets its own series from the start.
        folder: shared by the workers; default none, one process.
    """

    def __init__(self, stage_count: int, folder: Path | None = None) -> None:
        self._folder = folder
        self._registry = CollectorRegistry()
        common: Any = {"namespace": "rescade", "registry": self._registry}
        self._requests = Counter("requests", "Requests answered.", ["path", "method", "status"], **common)
        self._latency = Histogram(
            "request_seconds", "From the request line to the last byte.", ["path"], buckets=LATENCY_BUCKETS, **common
        )
        self._sizes = Histogram("batch_size", "Images in a run.", ["stage"], buckets=SIZE_BUCKETS, **common)
        self._run = Histogram("run_seconds", "One run of a network.", ["stage"], buckets=RUN_BUCKETS, **common)
        self._exits = Counter("exits", "Images answered at a stage.", ["stage"], **common)
        self._depth = Gauge("queue_depth", "Images waiting.", ["stage"], multiprocess_mode="livesum", **common)
        self._held = Gauge("images_in_flight", "Images waiting or running.", multiprocess_mode="livesum", **common)
        self._in_flight = Gauge("requests_in_flight", "Requests in hand.", multiprocess_mode="livesum", **common)
        self._stages = [str(stage) for stage in range(stage_count)]
        for stage in self._stages:
            for metric in (self._sizes, self._run, self._exits, self._depth):
                metric.labels(stage)

    def arrived(self) -> None:
        """Count a request in."""
        self._in_flight.inc()

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request out. `path` is a route of ours, so that strangers cannot invent series."""
        self._in_flight.dec()
        self._requests.labels(path, method, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def ran(self, stage: int, size: int, seconds: float, answered: int) -> None:
        """Count one run of a stage: images in it, seconds it took, images that left."""
        name = self._stages[stage]
        self._sizes.labels(name).observe(size)
        self._run.labels(name).observe(seconds)
        self._exits.labels(name).inc(answered)

    def queued(self, depths: Sequence[int], held: int) -> None:
        """Say how many images wait at each stage, and how many are in hand."""
        for name, depth in zip(self._stages, depths, strict=True):
            self._depth.labels(name).set(depth)
        self._held.set(held)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, over all workers."""
        if self._folder is None:
            return generate_latest(self._registry)
        forget_dead(self._folder, _living(self._folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def shared_folder() -> Path | None:
    """The folder the workers share, if there are several."""
    value = os.environ.get(FOLDER_VARIABLE)
    return Path(value) if value else None


def forget_dead(folder: Path, living: Iterable[int]) -> None:
    """Remove the gauges of processes that are gone: what a dead worker held is held no longer. Its counts stay."""
    alive = set(living)
    for path in folder.glob("gauge_live*.db"):
        if _pid(path) not in alive:
            path.unlink(missing_ok=True)


def _living(folder: Path) -> set[int]:
    return {pid for path in folder.glob("gauge_live*.db") if _is_alive(pid := _pid(path))}


def _pid(path: Path) -> int:
    return int(path.stem.rsplit("_", 1)[1])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
