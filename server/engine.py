"""The asyncio shell around the scheduler: the real clock, a future for each request, threads that run the networks.

All bookkeeping happens on the event loop, so nothing here is locked. A thread is handed a batch of rows and gives back
new rows; it touches no other state. A request that goes away, by cancellation, disconnection or deadline, takes its own
samples out and no others; a network that fails fails the samples of that batch and no others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition, first, join
from cascade.errors import DeadlineExceeded, NotReady, StageFailed
from cascade.exits import Floats, Scores, exits
from server.metrics import Metrics
from server.runtime import Runtime
from server.scheduler import Batch, Limits, Scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What the cascade says about one image.

    Attributes:
        logits: (K,) float32, the sum of the stages that ran.
        stage: where the sample left.
        energy: the energy that was tested there.
        run_s: seconds spent in the networks, with its batch mates.
    """

    logits: Floats
    stage: int
    energy: float
    run_s: float


@dataclass
class _Sample:
    request: _Request
    position: int
    image: Floats
    threshold: float
    logits: Floats
    energy: float = 0.0
    run_s: float = 0.0


@dataclass
class _Request:
    future: asyncio.Future[None]
    left: int
    outcomes: list[Outcome | None]


@dataclass(frozen=True)
class _Ran:
    logits: Floats
    energies: Scores
    exits: NDArray[np.bool_]
    seconds: float


class Engine:
    """Answers arrays of images with outcomes, many requests at once.

    Args:
        runtime: runs the networks.
        limits: of the scheduler.
        metrics: told of every batch and exit.
        clock: seconds, steady.
    """

    def __init__(
        self, runtime: Runtime, limits: Limits, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runtime = runtime
        self._definition: EnergyDefinition = runtime.manifest.exit.definition
        self._scheduler = Scheduler(len(runtime.manifest.stages), limits)
        self._metrics = metrics
        self._clock = clock
        self._samples: dict[int, _Sample] = {}
        self._thread = ThreadPoolExecutor(1, "run")
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._warm = False
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether every stage is warm and no drain has begun."""
        return self._warm and not self._draining

    def drain(self) -> None:
        """Turn not ready; what is in hand, and what still arrives, is answered."""
        self._draining = True

    async def warm_up(self) -> None:
        """Run every stage once at every batch size, then turn ready."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._runtime.warm_up)
        self._warm = True

    def close(self) -> None:
        """End the thread. No request may be in hand."""
        if self._timer is not None:
            self._timer.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def check_ready(self) -> None:
        """Refuse work before the warm-up has ended.

        Raises:
            NotReady: it has not.
        """
        if not self._warm:
            raise NotReady("the networks are still warming up: try again in a second")

    async def predict(
        self, images: Floats, threshold: float, max_stage: int | None = None, deadline: float = float("inf")
    ) -> Sequence[Outcome]:
        """Run the cascade over one request's images, in company with other requests' images.

        Args:
            images: (N, 3, H, W) float32, preprocessed.
            threshold: energy to be exceeded.
            max_stage: the last stage that may run.
            deadline: on the engine's clock.

        Raises:
            NotReady: warm-up has not ended.
            Overloaded: too many images are in hand.
            DeadlineExceeded: the answer would come too late.
            StageFailed: a network could not be run.
        """
        self.check_ready()
        ids = self._scheduler.submit(self._clock(), deadline, len(images), max_stage)
        request = _Request(asyncio.get_running_loop().create_future(), len(images), [None] * len(images))
        nothing = np.empty(0, np.float32)
        for position, id_ in enumerate(ids):
            self._samples[id_] = _Sample(request, position, images[position], threshold, nothing)
        try:
            self._pump()
            await request.future
        finally:
            self._forget(ids)
        return [outcome for outcome in request.outcomes if outcome is not None]

    def _forget(self, ids: range) -> None:
        self._scheduler.cancel(ids)
        for id_ in ids:
            self._samples.pop(id_, None)
        self._metrics.queued(self._scheduler.depths(), len(self._scheduler))

    def _pump(self) -> None:
        """Start what is due, let go what is late, and set the alarm for what comes next."""
        for id_ in self._scheduler.expire(now := self._clock()):
            self._fail(
                (id_,), DeadlineExceeded("the answer did not come in time: send fewer images, or try again later")
            )
        if not self._busy and (batch := self._scheduler.next_batch(now)) is not None:
            self._start(batch)
        self._metrics.queued(self._scheduler.depths(), len(self._scheduler))
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_at = self._scheduler.wake_at(can_run=not self._busy)
        if wake_at is not None and wake_at != float("inf"):
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wake_at - self._clock()), self._pump)

    def _start(self, batch: Batch) -> None:
        samples = [self._samples[id_] for id_ in batch.ids]
        self._busy = True
        task = asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch.stage, samples)
        task.add_done_callback(lambda done: self._finish(batch, samples, done))

    def _run(self, stage: int, samples: list[_Sample]) -> _Ran:
        """Run one stage over one batch; called in the thread, on samples that nothing else changes meanwhile."""
        began = time.perf_counter()
        output = self._runtime.run(stage, np.stack([sample.image for sample in samples]))
        seconds = time.perf_counter() - began
        if output.shape != (wanted := (len(samples), len(self._runtime.manifest.labels))):
            raise ValueError(f"stage {stage} gave logits of shape {output.shape}, not {wanted}")
        if stage == 0:
            logits, energies = first(output)
        else:
            logits, energies = join(
                np.stack([sample.logits for sample in samples]),
                np.asarray([sample.energy for sample in samples], np.float64),
                output,
                self._definition,
            )
        stops = exits(energies, np.asarray([sample.threshold for sample in samples], np.float64))
        return _Ran(logits, energies, stops, seconds)

    def _finish(self, batch: Batch, samples: list[_Sample], done: asyncio.Future[_Ran]) -> None:
        self._busy = False
        if (error := done.exception()) is not None:
            logger.error("stage failed", exc_info=error, extra={"fields": {"stage": batch.stage}})
            failure = StageFailed(f"stage {batch.stage} could not be run; the log says why")
            failure.__cause__ = error
            self._fail(batch.ids, failure)
        else:
            self._settle(batch, samples, done.result())
        self._pump()

    def _settle(self, batch: Batch, samples: list[_Sample], ran: _Ran) -> None:
        for row, sample in enumerate(samples):
            sample.logits, sample.energy = ran.logits[row], float(ran.energies[row])
            sample.run_s += ran.seconds
        answered = self._scheduler.advance(batch, ran.exits.tolist(), self._clock())
        self._metrics.ran(batch.stage, len(batch.ids), ran.seconds, len(answered))
        for id_ in answered:
            sample = self._samples.pop(id_)
            request = sample.request
            request.outcomes[sample.position] = Outcome(sample.logits, batch.stage, sample.energy, sample.run_s)
            request.left -= 1
            if request.left == 0 and not request.future.done():
                request.future.set_result(None)

    def _fail(self, ids: Sequence[int], error: Exception) -> None:
        """Answer the requests of these samples with an error; each takes its own samples out as it leaves."""
        for id_ in ids:
            sample = self._samples.get(id_)
            if sample is not None and not sample.request.future.done():
                sample.request.future.set_exception(error)
