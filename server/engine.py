"""The asyncio shell around the scheduler: the real clock, a future for each request, and the networks' runs.

All bookkeeping happens on the event loop, so nothing here is locked. A network that takes no longer than a couple of
milliseconds on the CPU is run on the loop itself, between two rounds of reading and writing: handing it to a thread and
back takes as long as a light network does, and there is no other core to run it on. Anything slower, and every GPU, is
run in a thread, which is handed a batch of rows and gives back new rows; it touches no other state. A request that goes
away, by cancellation, disconnection or deadline, takes its own samples out and no others; a network that fails fails
the samples of that batch and no others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition, Sums, first, join
from cascade.errors import DeadlineExceeded, NotReady, Overloaded, StageFailed
from cascade.exits import Floats, Threshold, at, exits
from server.cores import roam
from server.costs import Costs
from server.metrics import Metrics, ModelMetrics
from server.outcome import Answered, Outcome, Request
from server.runtime import Image, Images, Runtime
from server.scheduler import Batch, Departure, Limits, Scheduler
from server.tracing import Trace, note
from server.waiting import ORDINARY

logger = logging.getLogger(__name__)

INLINE_S = 0.002  # the longest run of a network, and of a batch of them, that the event loop may be held for
NEVER = float("inf")
NOTHING = np.empty(0, np.float32)


@dataclass(slots=True)
class _Sample:
    request: Request
    position: int
    image: Image
    threshold: Threshold
    joined: float
    logits: Floats
    shares: Floats
    stage: int = 0
    energy: float = 0.0
    run_s: float = 0.0

    def outcome(self, stage: int, truncated: bool = False) -> Outcome:
        return Outcome(self.logits, self.shares, stage, self.energy, self.run_s, truncated)


class _Ran(NamedTuple):
    sums: Sums
    exits: NDArray[np.bool_]
    seconds: float


class Engine:
    """Answers arrays of images with outcomes, many requests at once.

    Args:
        runtime: runs the networks.
        limits: of the scheduler.
        metrics: told of every batch and exit.
        clock: seconds, steady.
        inline: whether light networks may run on the event loop: on a CPU they may.
    """

    def __init__(
        self,
        runtime: Runtime,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        inline: bool = False,
    ) -> None:
        self._runtime = runtime
        self._limits = limits
        self._definition: EnergyDefinition = runtime.manifest.exit.definition
        self._metrics: ModelMetrics = metrics.of_model(runtime.manifest.name, runtime.manifest.costs())
        self._clock = clock
        self._samples: dict[int, _Sample] = {}
        self._thread = ThreadPoolExecutor(1, "run", roam)
        self._may_inline, self._inline = inline, False
        self._busy = False
        self._pump_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = NEVER
        self._warm = False
        self._draining = False
        self.costs = Costs.unknown(len(runtime.manifest.stages))
        self._scheduler = Scheduler(len(runtime.manifest.stages), limits)
        self._metrics.watch(self._look)

    @property
    def ready(self) -> bool:
        """Whether every stage is warm and no drain has begun."""
        return self._warm and not self._draining

    @property
    def inline(self) -> bool:
        """Whether the networks run on the event loop."""
        return self._inline

    @property
    def in_hand(self) -> int:
        """Samples waiting or running."""
        return len(self._scheduler)

    def _look(self) -> tuple[Sequence[int], int]:
        return self._scheduler.depths(), len(self._scheduler)

    def drain(self) -> None:
        """Turn not ready; what is in hand, and what still arrives, is answered."""
        self._draining = True

    async def warm_up(self) -> None:
        """Run every stage at every batch size and note how long each takes, then turn ready."""
        self.costs = await asyncio.get_running_loop().run_in_executor(self._thread, self._runtime.warm_up)
        stages = len(self._runtime.manifest.stages)
        slowest = max(self.costs.run(stage, 1) for stage in range(stages))
        self._inline = self._may_inline and slowest <= INLINE_S
        limits = self._limits
        if self._inline and slowest:
            largest = max(1, min(limits.max_batch, int(INLINE_S / slowest)))
            limits = replace(limits, max_batch=largest, max_wait=0.0)  # a larger batch takes as long an image
        self._scheduler = Scheduler(stages, limits, self.costs)
        self._warm = True
        logger.info("warm", extra={"fields": self.describe()})

    def describe(self) -> dict[str, object]:
        """What the warm-up found, for the log and for people."""
        milliseconds = [[round(seconds * 1000, 4) for seconds in row] for row in self.costs.seconds]
        return {
            "model": self._runtime.manifest.name,
            "version": self._runtime.manifest.version,
            "inline": self._inline,
            "batch_sizes": list(self.costs.sizes),
            "run_ms": milliseconds,
        }

    def close(self, wait: bool = True) -> None:
        """End the thread. No request may be in hand, but the batch of one that went away may still run.

        Args:
            wait: for that batch.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._metrics.forget(self._look)
        self._thread.shutdown(wait=wait, cancel_futures=True)

    def check_ready(self) -> None:
        """Refuse work before the warm-up has ended.

        Raises:
            NotReady: it has not.
        """
        if not self._warm:
            raise NotReady("the networks are still warming up: try again in a second")

    def check_room(self, deadline: float) -> None:
        """Refuse a request that has no prospects, before its body is read and its images are decoded.

        Args:
            deadline: on the engine's clock.

        Raises:
            NotReady: warm-up has not ended.
            Overloaded: too many images are in hand, or they take until after the deadline.
            DeadlineExceeded: the answer would come too late.
        """
        self.check_ready()
        try:
            self._scheduler.check_room(self._clock(), deadline)
        except Overloaded:
            self._metrics.left("refused")
            raise

    async def predict(
        self,
        images: Images,
        threshold: Threshold,
        max_stage: int | None = None,
        deadline: float = NEVER,
        may_truncate: bool = False,
        trace: Trace | None = None,
        priority: int = ORDINARY,
    ) -> Sequence[Outcome]:
        """Run the cascade over one request's images and wait for the outcomes; see `begin`.

        Raises:
            StageFailed: a network could not be run.
            CascadeError: as `begin` raises it; DeadlineExceeded also later on.
        """
        future: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()

        def answered(result: Sequence[Outcome] | Exception) -> None:
            if future.done():  # cancelled, and about to be withdrawn
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        request = self.begin(images, threshold, answered, max_stage, deadline, may_truncate, trace, priority)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw(request)
            raise

    def begin(
        self,
        images: Images,
        threshold: Threshold,
        answered: Answered,
        max_stage: int | None = None,
        deadline: float = NEVER,
        may_truncate: bool = False,
        trace: Trace | None = None,
        priority: int = ORDINARY,
    ) -> Request:
        """Let one request's images in, to run in company with other requests' images.

        Args:
            images: (N, 3, H, W), or N of (3, H, W): float32, preprocessed, or uint8 of the network's size.
            threshold: energy to be exceeded; one for all stages, or one for each but the last.
            answered: called from the event loop with the outcomes in order, or with what went wrong; must not raise.
            max_stage: the last stage that may run.
            deadline: on the engine's clock.
            may_truncate: whether an answer of fewer stages is better than none when time runs out.
            trace: told of every run that holds one of the images.
            priority: the lower runs first.

        Raises:
            NotReady: warm-up has not ended.
            Overloaded: too many images are in hand, or they take until after the deadline.
            DeadlineExceeded: the answer would come too late.
        """
        self.check_ready()
        now, count = self._clock(), len(images)
        try:
            ids = self._scheduler.submit(now, deadline, count, max_stage, may_truncate, priority)
        except Overloaded:
            self._metrics.left("refused", count)
            raise
        self._metrics.admitted(count)
        request = Request(ids, count, [None] * count, answered, trace)
        for position, id_ in enumerate(ids):
            self._samples[id_] = _Sample(request, position, images[position], threshold, now, NOTHING, NOTHING)
        self._pump_soon()
        return request

    def withdraw(self, request: Request) -> None:
        """Let a request's samples go, since nobody waits for them any more; harmless where it is over."""
        if not request.over:
            request.over = True
            self._metrics.left("cancelled", self._scheduler.cancel(request.ids))
            self._forget(request.ids)

    def _forget(self, ids: range) -> None:
        self._scheduler.cancel(ids)
        for id_ in ids:
            self._samples.pop(id_, None)

    def _pump_soon(self) -> None:
        """Look for work once whatever else has arrived in this round of the loop is read, so that it is merged."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Start what is due, let go what is late, and set the alarm for what comes next."""
        self._pump_is_due = False
        now = self._clock()
        for departure in self._scheduler.expire(now):
            self._let_go(departure)
        if not self._busy and (batch := self._scheduler.next_batch(now)) is not None:
            self._start(batch, now)
        self._set_alarm()

    def _let_go(self, departure: Departure) -> None:
        """Answer a sample whose time is up: with what it has, if that is wanted, or with an error."""
        if departure.truncated:
            self._metrics.left("truncated")
            if sample := self._samples.pop(departure.id, None):  # gone where another of its request has failed it
                sample.request.settle(sample.position, sample.outcome(sample.stage, truncated=True))
            return
        self._metrics.left("deadline")
        message = "the answer did not come in time: send fewer images, allow a truncated answer, or try again later"
        self._fail((departure.id,), DeadlineExceeded(message))

    def _set_alarm(self) -> None:
        """Have `_pump` called when the scheduler next has something; an alarm that rings too early does no harm."""
        wake_at = self._scheduler.wake_at(can_run=not self._busy)
        if wake_at is None or wake_at >= self._rings_at or self._pump_is_due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = wake_at
        delay = max(0.0, wake_at - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, NEVER
        self._pump()

    def _start(self, batch: Batch, now: float) -> None:
        samples = [self._samples[id_] for id_ in batch.ids]
        self._metrics.began(batch.stage, batch.reason, [now - sample.joined for sample in samples])
        if not self._inline:
            self._busy = True
            task = asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch.stage, samples)
            task.add_done_callback(lambda done: self._finish(batch, samples, done.exception() or done.result(), now))
            return
        try:
            ran: _Ran | BaseException = self._run(batch.stage, samples)
        except Exception as error:
            ran = error
        self._finish(batch, samples, ran, now)

    def _run(self, stage: int, samples: list[_Sample]) -> _Ran:
        """Run one stage over one batch; called in the thread, on samples that nothing else changes meanwhile."""
        began = time.perf_counter()
        output = self._runtime.run(stage, [sample.image for sample in samples])
        seconds = time.perf_counter() - began
        if output.shape != (wanted := (len(samples), len(self._runtime.manifest.labels))):
            raise ValueError(f"stage {stage} gave logits of shape {output.shape}, not {wanted}")
        if stage == 0:
            sums = first(output)
        else:
            sums = join(
                np.stack([sample.logits for sample in samples]),
                np.asarray([sample.energy for sample in samples], np.float64),
                output,
                self._definition,
            )
        thresholds = np.asarray([at(sample.threshold, stage) for sample in samples])
        return _Ran(sums, exits(sums.energies, thresholds), seconds)

    def _finish(self, batch: Batch, samples: list[_Sample], ran: _Ran | BaseException, began: float) -> None:
        self._busy = False
        traces = [(sample.request.trace, sample.joined) for sample in samples]
        if any(trace is not None for trace, _ in traces):
            note(batch.stage, batch.reason, traces, began, self._clock())
        if isinstance(ran, BaseException):
            logger.error("stage failed", exc_info=ran, extra={"fields": {"stage": batch.stage}})
            failure = StageFailed(f"stage {batch.stage} could not be run; the log says why")
            failure.__cause__ = ran
            self._scheduler.give_up(batch)
            self._metrics.left("failed", len(batch.ids))
            self._fail(batch.ids, failure)
        else:
            self._settle(batch, samples, ran)
        if len(self._scheduler):
            self._pump_soon()

    def _settle(self, batch: Batch, samples: list[_Sample], ran: _Ran) -> None:
        now = self._clock()
        for sample, logits, energy, shares in zip(
            samples, ran.sums.logits, ran.sums.energies.tolist(), ran.sums.shares, strict=True
        ):
            sample.logits, sample.energy, sample.shares = logits, energy, shares
            sample.stage, sample.joined = batch.stage, now
            sample.run_s += ran.seconds
        present = sum(id_ in self._samples for id_ in batch.ids)
        answered = self._scheduler.advance(batch, ran.exits.tolist(), now)
        self._metrics.ran(batch.stage, len(batch.ids), ran.seconds, len(answered), present - len(answered))
        for id_ in answered:
            sample = self._samples.pop(id_)
            sample.request.settle(sample.position, sample.outcome(batch.stage))

    def _fail(self, ids: Sequence[int], error: Exception) -> None:
        """Answer the requests of these samples with an error, and take all samples of these requests out."""
        for id_ in ids:
            sample = self._samples.get(id_)
            if sample is not None:
                request = sample.request
                request.over = True
                self._forget(request.ids)
                request.answered(error)
