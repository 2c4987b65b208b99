"""One command's worth of measuring: look at the server, warm it up, run after run, report what happened.

Runs follow one another on fresh connections, with the same images in the same order under the same load. Each begins
with a warm-up in a closed loop, which is not counted.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from bench import arrivals, images, load, report
from bench.address import Address
from bench.answers import Answer, BundleInfo
from bench.asker import Asker
from bench.errors import BadAnswer, BenchError, Refused
from bench.images import Sample
from bench.load import Recording, Reply
from bench.plan import FULL, Load, Variation

WARMUP_CONNECTIONS = 8

Watch = Callable[[str, Load, Recording], AbstractAsyncContextManager[None]]
"""Shows a run's progress while the context is open: takes a title, the load and the growing record."""


@dataclass(slots=True)
class Run:
    """One run, begun and perhaps not ended.

    Attributes:
        load: how requests are sent.
        variation: the cascade's options.
        recording: what happened so far.
        seen: an answer, for the facts all answers share.
        cpu_s: processor time this process spent, seconds.
        ended: whether it came to its end.
    """

    load: Load
    variation: Variation
    recording: Recording = field(default_factory=Recording)
    seen: Answer | None = None
    cpu_s: float = 0.0
    ended: bool = False


@dataclass(slots=True)
class Session:
    """A server, the images for it, and the runs so far.

    Attributes:
        address: the server.
        samples: images, in memory.
        bundle: what the server says it serves; `None` if it does not say.
        runs: begun so far, in order.
        notes: what a reader of the figures should know.
    """

    address: Address
    samples: Sequence[Sample]
    bundle: BundleInfo | None = None
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    async def measure(self, plan: Sequence[tuple[Load, Variation]], watch: Watch) -> None:
        """Run the whole plan, one run after another.

        Raises:
            BenchError: the server cannot be reached, or answered none of a warm-up.
        """
        await self._look(plan[0][0].timeout_s)
        for settings, variation in plan:
            async with Asker(self.address, connections=settings.connections, timeout_s=settings.timeout_s) as asker:
                title = f"{variation.name} ({settings.words})"
                warm_up = Run(
                    settings.model_copy(update={"requests": settings.warmup, "duration_s": None, "deadline_ms": None}),
                    variation,
                )
                async with watch(f"warm-up of {title}", warm_up.load, warm_up.recording):
                    await self._warm_up(asker, warm_up)
                run = Run(settings, variation)
                self.runs.append(run)
                async with watch(title, settings, run.recording):
                    with _uncollected():
                        await self._measured(asker, run)

    def reports(self) -> list[report.Report]:
        """Figures of every run that has any, compared with the full cascade if that was one of them."""
        costs = [stage.macs for stage in self.bundle.stages] if self.bundle else []
        done = [summarise(run, costs) for run in self.runs if run.recording.outcomes]
        full = next((item for item in done if item.name == FULL), None)
        if full is None:
            return done
        return [item.model_copy(update={"versus_full": report.ratios(item, full)}) for item in done]

    async def _look(self, timeout_s: float) -> None:
        """Learn the stages' costs and the labels; do without where the server does not tell them."""
        async with Asker(self.address, timeout_s=timeout_s) as asker:
            with contextlib.suppress(Refused, BadAnswer):
                self.bundle = await asker.bundle()
        if self.bundle is None:
            self.notes.append("the server does not describe its bundle at /bundle: costs are left out")
            return
        named = set(images.classes(self.samples))
        strange = sorted(named - set(self.bundle.labels))
        if strange:
            listed = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
            lost = "accuracy is left out" if len(strange) == len(named) else "images in such folders count as wrong"
            self.notes.append(f"the server has no class named {listed}: {lost}")
            if len(strange) == len(named):
                self.samples = [replace(sample, label=None) for sample in self.samples]

    async def _warm_up(self, asker: Asker, run: Run) -> None:
        settings = run.load
        workers = min(settings.connections, WARMUP_CONNECTIONS) if settings.mode == "open" else settings.connections
        await load.closed_loop(
            self._ask(asker, run),
            run.recording,
            concurrency=workers,
            requests=settings.requests,
            timeout_s=settings.timeout_s,
        )
        outcomes = run.recording.outcomes
        if outcomes and not any(outcome.reply for outcome in outcomes):
            raise BenchError(
                f"{run.variation.name}: every warm-up request failed, the first with: {outcomes[0].message}"
            )

    async def _measured(self, asker: Asker, run: Run) -> None:
        settings = run.load
        ask = self._ask(asker, run)
        cpu_s = time.process_time()
        try:
            if settings.mode == "closed":
                await load.closed_loop(
                    ask,
                    run.recording,
                    concurrency=settings.connections,
                    timeout_s=settings.timeout_s,
                    requests=settings.requests,
                    duration_s=settings.duration_s or float("inf"),
                )
            else:
                await load.open_loop(
                    ask,
                    run.recording,
                    offsets=schedule(settings),
                    connections=settings.connections,
                    timeout_s=settings.timeout_s,
                )
            run.ended = True
        finally:
            run.cpu_s = time.process_time() - cpu_s

    def _ask(self, asker: Asker, run: Run) -> load.Ask:
        order = images.order(len(self.samples), run.load.seed)
        variation = run.variation

        async def ask(number: int, timeout_s: float) -> Reply:
            sample = self.samples[order[number % len(order)]]
            run.seen = answer = await asker.predict(
                sample.body,
                sample.content_type,
                threshold=variation.threshold,
                max_stage=variation.max_stage,
                timeout_s=timeout_s,
                deadline_ms=run.load.deadline_ms,
            )
            best = answer.best
            correct = None if sample.label is None else best.label == sample.label
            return Reply(best.stage, best.energy, correct, answer.received_at)

        return ask


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector out of a run: it would walk the growing record and stall answers that have come.

    A request leaves no cycles behind, so nothing piles up meanwhile.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def schedule(settings: Load) -> arrivals.Offsets:
    """The intended times of an open loop, seconds after its start."""
    assert settings.arrivals is not None
    assert settings.rate_per_s is not None
    if settings.duration_s is not None:
        return arrivals.by_duration(settings.arrivals, settings.rate_per_s, settings.duration_s, settings.seed)
    assert settings.requests is not None
    return arrivals.by_count(settings.arrivals, settings.rate_per_s, settings.requests, settings.seed)


def summarise(run: Run, costs: Sequence[int]) -> report.Report:
    """Figures of one run.

    Args:
        run: with at least one outcome.
        costs: MACs of each stage, empty where they are not known.
    """
    outcomes = run.recording.outcomes
    answered = [outcome for outcome in outcomes if outcome.reply is not None]
    replies = [outcome.reply for outcome in outcomes if outcome.reply is not None]
    left = report.exits(outcomes, len(costs))
    energies = [reply.energy for reply in replies if reply.energy is not None]
    verdicts = [reply.correct for reply in replies]
    counts, examples = report.errors(outcomes)
    elapsed_s = run.recording.elapsed_s
    if run.load.mode == "open" and run.load.duration_s is not None and run.ended:
        elapsed_s = max(elapsed_s, run.load.duration_s)
    waits = [outcome.started_at - outcome.intended_at for outcome in answered]
    return report.Report(
        name=run.variation.name,
        load=run.load,
        asked_threshold=run.variation.threshold,
        asked_max_stage=run.variation.max_stage,
        model=run.seen.model if run.seen else None,
        version=run.seen.version if run.seen else None,
        threshold=run.seen.threshold if run.seen else None,
        interrupted=not run.ended,
        requests=len(outcomes),
        succeeded=len(replies),
        failed=len(outcomes) - len(replies),
        elapsed_s=elapsed_s,
        throughput_per_s=report.throughput(len(replies), elapsed_s),
        latency_ms=report.times(report.latencies_s(outcomes)),
        wait_ms=report.times(waits) if run.load.mode == "open" else None,
        refusal_ms=report.times(report.refusals_s(outcomes)),
        errors=counts,
        error_examples=examples,
        exits=left,
        accuracy=report.accuracy(verdicts),
        judged=sum(verdict is not None for verdict in verdicts),
        mean_energy=sum(energies) / len(energies) if energies else None,
        mean_macs=report.mean_macs(left, costs),
        generator_cpu_share=run.cpu_s / elapsed_s if elapsed_s > 0 else 0.0,
    )
