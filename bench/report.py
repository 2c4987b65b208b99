"""From what happened to figures: pure functions, and the models that are both table and JSON.

Only answered requests have a latency; failures are counted by kind and appear nowhere else. Percentiles are by nearest
rank: p99 is a latency that was measured, the smallest that at least 99 % of the answers did not exceed. With fewer
than 1,000 answers p99.9 is the slowest of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bench.load import Outcome
from bench.plan import Load

FORMAT_VERSION = 1
LATER = ("429", "503")
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Figures(BaseModel):
    """Immutable figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Times(Figures):
    """A distribution of times, milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


class Exit(Figures):
    """What left the cascade at one stage.

    Attributes:
        stage: 0 is the first student.
        count: answers that left there.
        share: of all answers, in [0, 1].
        accuracy: of the answers that left there, if labels are known and there were any.
    """

    stage: int
    count: int
    share: float
    accuracy: float | None


class Ratios(Figures):
    """One run beside the full cascade's; `None` where either has no such figure.

    Attributes:
        throughput: this run's divided by the full cascade's; above 1 is faster.
        p50: likewise; below 1 is faster.
        p99: likewise.
        macs: likewise; below 1 is cheaper.
        accuracy_points: this run's minus the full cascade's, percentage points.
    """

    throughput: float | None
    p50: float | None
    p99: float | None
    macs: float | None
    accuracy_points: float | None


class Report(Figures):
    """One run.

    Attributes:
        name: of the variation that was measured.
        load: how requests were sent.
        asked_threshold: sent with each request; `None` left it to the server.
        asked_max_stage: sent with each request; `None` left it to the server.
        model: name of the bundle that answered.
        version: its version.
        threshold: the one the server says it applied.
        interrupted: whether the run was cut short.
        requests: answered or failed.
        succeeded: answered.
        failed: not answered, or not usably.
        elapsed_s: from the start to the last answer, seconds.
        throughput_per_s: answers a second.
        latency_ms: of answers, from the intended time to the last byte.
        wait_ms: open loop: from the intended time to the sending, of answered requests.
        refusal_ms: of answers that said "later" (503 and 429), from the sending to the last byte.
        errors: kind -> how many.
        error_examples: kind -> the first one's message.
        exits: one entry a stage.
        accuracy: in [0, 1], of the answers whose label is known.
        judged: how many those are.
        mean_energy: of the energies tested at the exits.
        mean_macs: multiply-accumulates an image, if the server tells its stages' costs.
        generator_cpu_share: of one core, used by this process during the run; near 1 it was the bottleneck.
        versus_full: ratios, in a comparison.
    """

    name: str
    load: Load
    asked_threshold: float | None
    asked_max_stage: int | None
    model: str | None
    version: str | None
    threshold: float | None
    interrupted: bool
    requests: int
    succeeded: int
    failed: int
    elapsed_s: float
    throughput_per_s: float
    latency_ms: Times | None
    wait_ms: Times | None
    refusal_ms: Times | None
    errors: dict[str, int]
    error_examples: dict[str, str]
    exits: tuple[Exit, ...]
    accuracy: float | None
    judged: int
    mean_energy: float | None
    mean_macs: float | None
    generator_cpu_share: float
    versus_full: Ratios | None = None


class Images(Figures):
    """What was sent.

    Attributes:
        folder: where the images lay.
        count: how many.
        bytes: all of them together.
        classes: names of the class folders; empty in a flat layout.
    """

    folder: str
    count: int
    bytes: int
    classes: tuple[str, ...]


class Document(Figures):
    """All that a command measured; the JSON report.

    Attributes:
        format_version: grows when a reader of the old format would misread the new one.
        url: of the server.
        images: what was sent.
        runs: in the order they ran.
    """

    format_version: int = FORMAT_VERSION
    url: str
    images: Images
    runs: tuple[Report, ...]


def percentile(ordered: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """The nearest-rank percentile.

    Args:
        ordered: ascending, at least one.
        percent: in (0, 100].
    """
    # Without the rounding, 99.9 % of 1,000 would be a hair over 999 in binary, and take the 1,000th.
    rank = math.ceil(round(len(ordered) * percent / 100, 9))
    return float(ordered[max(rank, 1) - 1])


def times(seconds: Sequence[float]) -> Times | None:
    """A distribution in milliseconds; `None` of nothing."""
    if not seconds:
        return None
    ordered = np.sort(np.asarray(seconds, np.float64)) * 1e3
    p50, p90, p99, p99_9 = (percentile(ordered, percent) for percent in (50, 90, 99, 99.9))
    return Times(mean=float(ordered.mean()), p50=p50, p90=p90, p99=p99, p99_9=p99_9, max=float(ordered[-1]))


def latencies_s(outcomes: Sequence[Outcome]) -> list[float]:
    """Latencies of the answered requests, seconds."""
    return [outcome.latency_s for outcome in outcomes if outcome.reply is not None]


def refusals_s(outcomes: Sequence[Outcome]) -> list[float]:
    """How long the server took to say that it could not now, seconds; the wait to be sent was not its own."""
    return [outcome.finished_at - outcome.started_at for outcome in outcomes if outcome.kind.startswith(LATER)]


def throughput(succeeded: int, elapsed_s: float) -> float:
    """Answers a second; 0 where no time passed."""
    return succeeded / elapsed_s if elapsed_s > 0 else 0.0


def errors(outcomes: Sequence[Outcome]) -> tuple[dict[str, int], dict[str, str]]:
    """Failures by kind, the most frequent first, and the first message of each kind."""
    counts = Counter(outcome.kind for outcome in outcomes if outcome.reply is None)
    examples: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.reply is None:
            examples.setdefault(outcome.kind, outcome.message)
    return dict(counts.most_common()), {kind: examples[kind] for kind, _ in counts.most_common()}


def exits(outcomes: Sequence[Outcome], stage_count: int = 0) -> tuple[Exit, ...]:
    """What left at each stage.

    Args:
        outcomes: of one run.
        stage_count: stages to list even if nothing left there.
    """
    replies = [outcome.reply for outcome in outcomes if outcome.reply is not None]
    counts = Counter(reply.stage for reply in replies)
    stages = max(stage_count, max(counts, default=-1) + 1)
    return tuple(
        Exit(
            stage=stage,
            count=counts[stage],
            share=counts[stage] / len(replies) if replies else 0.0,
            accuracy=accuracy([reply.correct for reply in replies if reply.stage == stage]),
        )
        for stage in range(stages)
    )


def accuracy(verdicts: Sequence[bool | None]) -> float | None:
    """The share of right answers among those whose label is known; `None` where there are none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None


def mean_macs(left: Sequence[Exit], costs: Sequence[int]) -> float | None:
    """Mean cost of an image: one that left at stage i paid for all stages up to i.

    Args:
        left: what left at each stage.
        costs: MACs of each stage; empty where they are not known.

    Returns:
        MACs; `None` without answers, or where a stage's cost is not known.
    """
    answers = sum(item.count for item in left)
    if not answers or len(left) > len(costs):
        return None
    running = np.cumsum(np.asarray(costs, np.float64))
    return float(sum(item.count * running[item.stage] for item in left) / answers)


def macs_in_words(macs: float) -> str:
    """Multiply-accumulates with the prefix that fits, e.g. `40.81 M`."""
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if macs >= size), (1.0, ""))
    return f"{macs / size:.4g} {prefix}".rstrip()


def ratios(run: Report, full: Report) -> Ratios:
    """One run beside the full cascade's."""
    points = None
    if run.accuracy is not None and full.accuracy is not None:
        points = 100 * (run.accuracy - full.accuracy)
    return Ratios(
        throughput=_ratio(run.throughput_per_s, full.throughput_per_s),
        p50=_ratio(run.latency_ms.p50, full.latency_ms.p50) if run.latency_ms and full.latency_ms else None,
        p99=_ratio(run.latency_ms.p99, full.latency_ms.p99) if run.latency_ms and full.latency_ms else None,
        macs=_ratio(run.mean_macs, full.mean_macs),
        accuracy_points=points,
    )


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
