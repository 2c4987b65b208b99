"""When a sample may leave: the exit rule, and thresholds under a name with what they are known to keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cascade.exits import Threshold
from cascade.fields import Count, Frozen, Name, Share


class ThresholdRule(Frozen):
    """Where a threshold came from: `ratio * energy` of a reference on D_v, or a number somebody gave.

    Attributes:
        name: `energy_ratio` (ResKD section 5.3 and Algorithm 1) or `fixed`.
        ratio: rho, for `energy_ratio`.
        reference: `S_n`, the whole cascade, or `T`, the teacher.
        energy: mean energy of the reference on D_v.
        samples: size of D_v.
        fingerprint: sha256 over the sample indices of D_v and their labels.
        held_out: whether D_v was kept out of training.
    """

    name: Literal["energy_ratio", "fixed"]
    ratio: Annotated[float, Field(gt=0)] | None = None
    reference: Literal["S_n", "T"] | None = None
    energy: Annotated[float, Field(gt=0)] | None = None
    samples: Count | None = None
    fingerprint: str | None = None
    held_out: bool | None = None


class ExitRule(Frozen):
    """When a sample may leave: its score exceeds the threshold.

    Attributes:
        score: the only one there is, the squared norm of the softmax.
        definition: of the summed logits, or accumulated over stages.
        threshold: to be exceeded; equality goes on.
        rule: where the threshold came from.
    """

    score: Literal["energy"] = "energy"
    definition: Literal["summed", "accumulated"] = "summed"
    threshold: float
    rule: ThresholdRule


class Estimate(Frozen):
    """A mean over samples, and the ends of its confidence interval."""

    value: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]


class Latency(Frozen):
    """What the stages took at batch 1, and on what.

    Attributes:
        stages_ms: median milliseconds of each stage.
        mean_ms: of a sample of the cascade, at the profile's thresholds.
        hardware: what it was measured on.
    """

    stages_ms: tuple[Annotated[float, Field(ge=0)], ...]
    mean_ms: Annotated[float, Field(ge=0)]
    hardware: str


class Profile(Frozen):
    """Thresholds under a name, with what they keep and how that is known.

    Attributes:
        name: by which requests ask for them.
        rule: `paper` (rho times the mean energy), `accuracy` and `agreement` (lose at most `eps`, with probability
            1 - `delta`), `cost` and `latency` (the most accurate within `budget`).
        thresholds: one for all stages, or one for each but the last.
        certified: whether the rule is kept with the probability that it names; if not, nothing is promised, and where
            nothing could be, the thresholds are those of the full cascade.
        method: how they were found, in words.
        eps: what may be lost: accuracy, or agreement with the full cascade.
        delta: probability, over the draw of the calibration samples, that more is lost.
        per_exit: whether it is kept among those that leave at each stage, or on average only.
        budget: mean MACs, or mean milliseconds, a sample.
        rho: share of the full cascade's mean energy.
        data: what the samples are.
        samples: those that the figures below are from; of them come the certificates.
        searched: those that said where to look, and nothing else.
        seed: of the draw between them.
        fingerprint: sha256 over indices and labels of the samples, where they are a recipe's.
        seen: whether the networks were trained on the samples: `no` and `yes` are known, `unknown` is not.
        confidence: of each interval below.
        accuracy: share of right answers; none without labels.
        full_accuracy: the same of the full cascade.
        agreement: share of answers that are the full cascade's.
        macs: mean multiply-accumulates a sample.
        exits: share of samples that leave at each stage.
        latency: where it was measured.
    """

    name: Name
    rule: Literal["paper", "accuracy", "agreement", "cost", "latency"]
    thresholds: Annotated[tuple[float, ...], Field(min_length=1)]
    certified: bool
    method: str
    eps: Share | None = None
    delta: Share | None = None
    per_exit: bool | None = None
    budget: Annotated[float, Field(gt=0)] | None = None
    rho: Annotated[float, Field(gt=0)] | None = None
    data: str
    samples: Annotated[int, Field(gt=0)]
    searched: Count = 0
    seed: int = 0
    fingerprint: str | None = None
    seen: Literal["no", "yes", "unknown"]
    confidence: Share = 0.95
    accuracy: Estimate | None = None
    full_accuracy: Estimate | None = None
    agreement: Estimate
    macs: Estimate
    exits: tuple[Estimate, ...]
    latency: Latency | None = None

    @property
    def threshold(self) -> Threshold:
        """What a cascade takes: one number, or one a stage but the last."""
        return self.thresholds[0] if len(self.thresholds) == 1 else self.thresholds
