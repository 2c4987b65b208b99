"""What the server counts, for one process or for several that share a folder.

With several workers each writes its figures to a file of its own in `PROMETHEUS_MULTIPROC_DIR`, and whichever worker is
asked sums them all. prometheus_client looks at that variable when it is imported, so the parent sets it before it
starts a worker. Observations are collected by `server.tally` and handed over together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from server.scheduler import REASONS, Reason
from server.tally import BatchedHistogram, Count, Level, Spread

Look = Callable[[], tuple[Sequence[int], int]]
"""How many images wait at each stage of a model, and how many are in hand."""

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
RUN_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Everything the server counts.

    Args:
        folder: shared by the workers; default none, one process.
        defer: called with a function that hands over what was counted, to be called soon; default at once.
    """

    def __init__(
        self, folder: Path | None = None, defer: Callable[[Callable[[], None]], object] = lambda flush: flush()
    ) -> None:
        self._folder, self._defer, self._deferred = folder, defer, False
        self._tallies: dict[tuple[str, ...], Count | Level | Spread] = {}
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered.", "path", "method", "status")
        self._latency = self._histogram("request_seconds", "From the request line to the last byte.", "path")
        self._in_flight = Level(self._gauge("requests_in_flight", "Requests in hand."))
        self._tallies["requests_in_flight",] = self._in_flight
        self._answers: dict[tuple[str, str, int], tuple[Count, Spread]] = {}
        self._looks: dict[Look, ModelMetrics] = {}
        self._families = _Families(self)

    def arrived(self) -> None:
        """Count a request in."""
        self._in_flight.add(1)
        self.touch()

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request out. `path` is a route of ours, so that strangers cannot invent series."""
        self._in_flight.add(-1)
        if (series := self._answers.get((path, method, status))) is None:
            count = self.count(self._requests, path, method, str(status))
            series = self._answers[path, method, status] = count, self.spread(self._latency, LATENCY_BUCKETS, path)
        series[0].add()
        series[1].observe(seconds)
        self.touch()

    def of_model(self, name: str, macs: Sequence[int]) -> ModelMetrics:
        """The figures of one model: versions that follow each other share them.

        Args:
            name: of the model.
            macs: of each stage.
        """
        return ModelMetrics(self, self._families, name, macs)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, over all workers."""
        return generate_latest(self._summed())

    def collect(self) -> list[Metric]:
        """Everything as metric families, over all workers."""
        return list(self._summed().collect())

    def flush(self) -> None:
        """Hand over what was counted, and how many images there are now."""
        self._deferred = False
        for look, model in self._looks.items():
            model.queued(*look())
        for tally in self._tallies.values():
            tally.flush()

    def touch(self) -> None:
        """See that what was just counted is handed over soon."""
        if not self._deferred:
            self._deferred = True
            self._defer(self.flush)

    def watch(self, look: Look, model: ModelMetrics) -> None:
        """Ask how many images of a model wait at each stage and are in hand, whenever counts are handed over."""
        self._looks[look] = model

    def forget(self, look: Look) -> None:
        """Ask that no more."""
        self._looks.pop(look, None)

    def count(self, family: Counter, *labels: str) -> Count:
        """A counter's series, made when it is first asked for."""
        key = (family._name, *labels)
        if (found := self._tallies.get(key)) is None:
            found = self._tallies[key] = Count(family.labels(*labels))
        assert isinstance(found, Count), "names are used once"
        return found

    def spread(self, family: BatchedHistogram, bounds: Sequence[float], *labels: str) -> Spread:
        """A histogram's series."""
        key = (family._name, *labels)
        if (found := self._tallies.get(key)) is None:
            found = self._tallies[key] = Spread(family.labels(*labels), bounds)
        assert isinstance(found, Spread), "names are used once"
        return found

    def level(self, family: Gauge, *labels: str) -> Level:
        """A gauge's series."""
        key = (family._name, *labels)
        if (found := self._tallies.get(key)) is None:
            found = self._tallies[key] = Level(family.labels(*labels))
        assert isinstance(found, Level), "names are used once"
        return found

    def _summed(self) -> CollectorRegistry:
        self.flush()
        if self._folder is None:
            return self._registry
        forget_dead(self._folder, _living(self._folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        return registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="rescade", registry=self._registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> BatchedHistogram:
        return BatchedHistogram(name, text, labels, namespace="rescade", registry=self._registry, buckets=buckets)

    def _gauge(self, name: str, text: str, *labels: str, over_workers: str = "livesum") -> Gauge:
        common: Any = {"namespace": "rescade", "registry": self._registry, "multiprocess_mode": over_workers}
        return Gauge(name, text, labels, **common)


class _Families:
    """The metrics that models share, each with a label for the model."""

    def __init__(self, metrics: Metrics) -> None:
        counter, histogram, gauge = metrics._counter, metrics._histogram, metrics._gauge
        stage = ("model", "stage")
        self.arrivals = counter("arrivals", "Images that a stage took into its queue.", *stage)
        self.exits = counter("exits", "Images answered at a stage.", *stage)
        self.batches = counter("batches", "Runs of a stage, by why the batch was released.", *stage, "reason")
        self.queue = histogram("queue_seconds", "An image's wait for a stage.", *stage, buckets=RUN_BUCKETS)
        self.run = histogram("run_seconds", "One run of a network.", *stage, buckets=RUN_BUCKETS)
        self.sizes = histogram("batch_size", "Images in a run.", *stage, buckets=SIZE_BUCKETS)
        self.spent = counter("macs", "Multiply-accumulates spent.", "model")
        self.saved = counter("macs_saved", "Multiply-accumulates that later exits would have taken more.", "model")
        self.left = counter("unanswered", "Images that left without the cascade's answer, by why.", "model", "reason")
        self.asked = counter("inferences", "Requests to a model, by how they ended.", "model", "outcome")
        self.asked_seconds = counter("inference_seconds", "Time these requests took.", "model", "outcome")
        last = "When a request was last answered, seconds since the epoch."
        self.last = gauge("last_inference_seconds", last, "model", over_workers="max")
        self.depth = gauge("queue_depth", "Images waiting.", *stage)
        self.held = gauge("images_in_flight", "Images waiting or running.", "model")


class _Stage:
    """One stage's series, looked up once."""

    def __init__(self, metrics: Metrics, families: _Families, model: str, stage: str) -> None:
        self.arrivals = metrics.count(families.arrivals, model, stage)
        self.exits = metrics.count(families.exits, model, stage)
        self.batches = {reason: metrics.count(families.batches, model, stage, reason) for reason in REASONS}
        self.queue = metrics.spread(families.queue, RUN_BUCKETS, model, stage)
        self.run = metrics.spread(families.run, RUN_BUCKETS, model, stage)
        self.sizes = metrics.spread(families.sizes, SIZE_BUCKETS, model, stage)
        self.depth = metrics.level(families.depth, model, stage)


class ModelMetrics:
    """What is counted of one model; made by `Metrics.of_model`."""

    def __init__(self, metrics: Metrics, families: _Families, name: str, macs: Sequence[int]) -> None:
        self._metrics = metrics
        self._stages = [_Stage(metrics, families, name, str(stage)) for stage in range(len(macs))]
        self._macs = tuple(macs)
        self._spared = [sum(macs[stage + 1 :]) for stage in range(len(macs))]
        self._spent, self._saved = metrics.count(families.spent, name), metrics.count(families.saved, name)
        reasons = ("refused", "truncated", "cancelled", "deadline", "failed")
        self._left = {reason: metrics.count(families.left, name, reason) for reason in reasons}
        self._asked = {word: metrics.count(families.asked, name, word) for word in ("success", "fail")}
        self._seconds = {word: metrics.count(families.asked_seconds, name, word) for word in ("success", "fail")}
        self._held, self._last = metrics.level(families.held, name), metrics.level(families.last, name)

    def asked(self, worked: bool, seconds: float) -> None:
        """Count a request to the model, and how long it took."""
        word = "success" if worked else "fail"
        if worked:
            self._last.set(time.time())
        self._asked[word].add()
        self._seconds[word].add(seconds)
        self._metrics.touch()

    def began(self, stage: int, reason: Reason, waits: Iterable[float]) -> None:
        """Count a batch that is about to run: why now, and how long each of its images has waited."""
        series = self._stages[stage]
        series.batches[reason].add()
        for seconds in waits:
            series.queue.observe(seconds)

    def ran(self, stage: int, size: int, seconds: float, answered: int, went_on: int) -> None:
        """Count one run of a stage: images in it, seconds it took, images that left and that wait for the next."""
        series = self._stages[stage]
        series.sizes.observe(size)
        series.run.observe(seconds)
        series.exits.add(answered)
        self._spent.add(self._macs[stage] * size)
        self._saved.add(answered * self._spared[stage])
        if went_on:
            self._stages[stage + 1].arrivals.add(went_on)
        self._metrics.touch()

    def admitted(self, count: int) -> None:
        """Count images that were let in."""
        self._stages[0].arrivals.add(count)

    def left(self, reason: str, count: int = 1) -> None:
        """Count images that got no answer of the cascade: refused, truncated, cancelled, deadline or failed."""
        self._left[reason].add(count)
        self._metrics.touch()

    def watch(self, look: Look) -> None:
        """Ask this for `queued`, whenever counts are handed over, until `forget`."""
        self._metrics.watch(look, self)

    def forget(self, look: Look) -> None:
        """End what `watch` began."""
        self._metrics.forget(look)

    def queued(self, depths: Sequence[int], held: int) -> None:
        """Say how many images wait at each stage, and how many are in hand."""
        for series, depth in zip(self._stages, depths, strict=True):
            series.depth.set(depth)
        self._held.set(held)


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
