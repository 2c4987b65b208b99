"""From a rule and held-out samples to a profile: thresholds, whether they are certified, and what to expect of them.

The samples are split once, by a seed: a pilot, which searches and plans, and the rest, which certifies and from which
the figures are. So thresholds that were searched for are never judged on what they were searched on. The figures of a
certified profile are from the samples that certified it, and those are favourable to it if anything: the promise is
what the certificate says, not what the figures say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition
from cascade.errors import RecipeError
from cascade.exits import Floats
from cascade.figures import energy_threshold, running_sums
from cascade.rules import Estimate, Latency, Profile
from cascade.trace import Trace, trace
from export import guarantee
from export.bounds import lower_limit, upper_limit
from export.guarantee import Labels, Path
from export.heldout import HeldOut, Seen
from export.rules import Rule

PILOT = 0.1  # of the samples, where the path is a grid and only its beginning is chosen
SEARCH = 0.5  # where thresholds themselves are searched for
FEWEST = 20
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Timing:
    """What the stages took: median milliseconds each, and on what hardware."""

    stages_ms: tuple[float, ...]
    hardware: str


@dataclass(frozen=True)
class _Drawn:
    """Samples in two parts, with labels where there are any."""

    pilot: Trace
    pilot_labels: Labels | None
    rest: Trace
    rest_labels: Labels | None


@dataclass(frozen=True)
class _Found:
    thresholds: tuple[float, ...]
    certified: bool
    method: str


def profile(
    rule: Rule,
    held_out: HeldOut,
    costs: Sequence[int],
    definition: EnergyDefinition,
    *,
    per_stage: bool = False,
    seed: int = 0,
    timing: Timing | None = None,
) -> Profile:
    """Find the thresholds that a rule asks for, and say what they do.

    Args:
        rule: what to keep.
        held_out: N samples.
        costs: MACs of a stage.
        definition: of the energy.
        per_stage: a threshold for each stage, instead of one for all.
        seed: of the draw between pilot and rest.
        timing: for `latency`; where it is given, other profiles say what they take as well.

    Raises:
        RecipeError: there are no stages to leave early from, too few samples, no labels where a rule needs them, or
            nothing that fits the budget.
    """
    stages = len(held_out.stage_logits)
    if stages == 1:
        raise RecipeError("a cascade of one stage has no threshold to calibrate")
    if len(held_out) < FEWEST:
        raise RecipeError(f"{len(held_out)} samples are too few to calibrate on: give {FEWEST}, or rather thousands")
    if rule.kind == "accuracy" and held_out.labels is None:
        raise RecipeError("accuracy needs labels, and there are none: give them, or ask for agreement")
    traced = trace(held_out.stage_logits, definition)
    search = per_stage and rule.kind != "paper"
    share = 0.0 if rule.kind == "paper" else SEARCH if search or not rule.promises else PILOT
    drawn = _draw(traced, held_out.labels, share, seed)
    if rule.kind == "paper":
        found = _paper(rule, held_out.stage_logits)
    else:
        labels = None if rule.kind == "agreement" else drawn.pilot_labels
        classes = held_out.stage_logits[0].shape[1]
        path = guarantee.searched(drawn.pilot, labels, costs) if search else guarantee.grid(stages, classes, definition)
        if rule.promises:
            found = _certified(rule, drawn, path, held_out.seen)
        else:
            found = _within(rule, drawn, path, costs, timing)
        if not search:
            found = replace(found, thresholds=found.thresholds[:1])
    return _described(rule, found, held_out, drawn, costs, seed, timing)


def _draw(traced: Trace, labels: Labels | None, share: float, seed: int) -> _Drawn:
    order = np.random.default_rng([seed, 2]).permutation(len(traced))
    cut = round(share * len(traced))
    pilot, rest = np.sort(order[:cut]), np.sort(order[cut:])
    if labels is None:
        return _Drawn(traced.part(pilot), None, traced.part(rest), None)
    return _Drawn(traced.part(pilot), labels[pilot], traced.part(rest), labels[rest])


def _paper(rule: Rule, stage_logits: Sequence[Floats]) -> _Found:
    """TH = rho * Energy(S_n, D_v). Source: ResKD, Eq. 10 and its experiments."""
    threshold = energy_threshold(running_sums(stage_logits)[-1], rule.rho)
    return _Found((threshold,), False, f"{rule.rho:g} of the full cascade's mean energy (ResKD); promises nothing")


def _certified(rule: Rule, drawn: _Drawn, path: Path, seen: Seen) -> _Found:
    labels = (None, None) if rule.kind == "agreement" else (drawn.pilot_labels, drawn.rest_labels)
    definition = drawn.rest.definition
    pilot, rest = (
        guarantee.marks(part, truth, path).counts()
        for part, truth in zip((drawn.pilot, drawn.rest), labels, strict=True)
    )
    plan = guarantee.plan(pilot, rest.samples, path, definition, rule)
    p = guarantee.p_values(rest, path, definition, rule, plan)
    point = int(guarantee.last_accepted(p, plan.starts, rule.delta))
    test = "binomial tail of the losses" if not plan.credits else "exact tail of losses less gains (Berger and Boos)"
    where = "on average" if rule.average else "at every exit"
    method = f"Learn then Test, fixed sequence of {len(path)} points, {where}, {test}"
    if seen == "yes":
        return _Found(tuple(path[point].tolist()), False, f"{method}; void, since the samples were trained on")
    if point == 0:
        method += "; nothing could be certified, so this is the full cascade"
    return _Found(tuple(path[point].tolist()), point > 0, method)


def _within(rule: Rule, drawn: _Drawn, path: Path, costs: Sequence[int], timing: Timing | None) -> _Found:
    """The most accurate point of the path, on the pilot, whose mean cost is within the budget."""
    unit = np.cumsum(_unit_costs(rule, costs, timing))
    wanted = drawn.pilot.classes[:, -1] if drawn.pilot_labels is None else drawn.pilot_labels
    best: tuple[float, float, int] | None = None
    spent = np.inf
    for point, thresholds in enumerate(path):
        leaving = drawn.pilot.leaving(tuple(thresholds.tolist()))
        spent = float(unit[leaving].mean())
        if spent <= rule.budget:
            right = float((drawn.pilot.answers(leaving) == wanted).mean())
            best = max(best or (-1.0, 0.0, 0), (right, -spent, point))
    if best is None:
        raise RecipeError(f"{rule.name}: the budget is {rule.budget:g}, and the cheapest thresholds take {spent:g}")
    judged = "accuracy" if drawn.pilot_labels is not None else "agreement"
    method = f"best {judged} within the budget, chosen on other samples than those of the figures; promises nothing"
    return _Found(tuple(path[best[2]].tolist()), False, method)


def _unit_costs(rule: Rule, costs: Sequence[int], timing: Timing | None) -> Sequence[float]:
    if rule.kind == "cost":
        return costs
    if timing is None:
        raise RecipeError(f"{rule.name}: a budget in milliseconds needs measured times")
    return timing.stages_ms


def _described(
    rule: Rule,
    found: _Found,
    held_out: HeldOut,
    drawn: _Drawn,
    costs: Sequence[int],
    seed: int,
    timing: Timing | None,
) -> Profile:
    rest, labels = drawn.rest, drawn.rest_labels
    thresholds = found.thresholds[0] if len(found.thresholds) == 1 else found.thresholds
    leaving = rest.leaving(thresholds)
    answers, full = rest.answers(leaving), rest.classes[:, -1]
    return Profile(
        name=rule.name,
        rule=rule.kind,
        thresholds=found.thresholds,
        certified=found.certified,
        method=found.method,
        eps=rule.eps if rule.promises else None,
        delta=rule.delta if rule.promises else None,
        per_exit=not rule.average if rule.promises else None,
        budget=rule.budget or None,
        rho=rule.rho if rule.kind == "paper" else None,
        data=held_out.name,
        samples=len(rest),
        searched=len(drawn.pilot),
        seed=seed,
        fingerprint=held_out.fingerprint,
        seen=held_out.seen,
        confidence=CONFIDENCE,
        accuracy=None if labels is None else share(answers == labels),
        full_accuracy=None if labels is None else share(full == labels),
        agreement=share(answers == full),
        macs=mean_cost(leaving, costs),
        exits=tuple(share(leaving == stage) for stage in range(rest.stages)),
        latency=None if timing is None else _latency(leaving, timing),
    )


def _latency(leaving: NDArray[np.int64], timing: Timing) -> Latency:
    mean = float(np.cumsum(timing.stages_ms)[leaving].mean())
    return Latency(stages_ms=timing.stages_ms, mean_ms=mean, hardware=timing.hardware)


def share(hits: NDArray[np.bool_], confidence: float = CONFIDENCE) -> Estimate:
    """A share with Clopper and Pearson's interval."""
    count, samples, tail = int(hits.sum()), len(hits), (1 - confidence) / 2
    return Estimate(
        value=count / samples,
        low=float(lower_limit(count, samples, tail)),
        high=float(upper_limit(count, samples, tail)),
    )


def mean_cost(leaving: NDArray[np.int64], costs: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean cost c_0 + sum_i c_i Pr(L >= i), with the interval that follows from those of each Pr(L >= i).

    They hold together with the given confidence, each having its share of the error (Bonferroni).
    """
    each = 1 - (1 - confidence) / max(1, len(costs) - 1)
    reached = [share(leaving >= stage, each) for stage in range(1, len(costs))]
    first, *more = costs
    value, low, high = (
        first + sum(cost * getattr(estimate, end) for cost, estimate in zip(more, reached, strict=True))
        for end in ("value", "low", "high")
    )
    return Estimate(value=value, low=low, high=high)
