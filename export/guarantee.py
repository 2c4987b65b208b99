"""The cheapest thresholds that provably lose little: *Learn then Test* along one path of thresholds.

**The promise.** With probability at least 1 - delta over the draw of the calibration samples, the mean loss of the
chosen thresholds on the population that these were drawn from is at most eps. For `accuracy` the loss of a sample is 1
where the full cascade is right and the adaptive one wrong, -1 the other way round, 0 otherwise; its mean is the
accuracy that is lost. For `agreement`, which needs no labels, it is 1 where the two answers differ.

**Per exit.** The same holds among those samples that leave at each stage: the mean loss given the exit is at most eps.
At the last stage the two cascades are one, so the average over all samples is at most eps too, without a test of its
own. (`agreement` is the stricter: where it holds, `accuracy` does, with the same eps, per exit and on average.)
Given which samples left at a stage, their losses are independent draws from that exit's distribution, so a test of n_i
losses with n_i as it came out is valid given n_i, and so without it. An exit with too few samples to be certified is
not certified, and neither are the thresholds, unless they are such that nobody can leave there.

**Several exits.** Thresholds keep their promise if every exit does. The null hypothesis "some exit loses more" is the
union of the exits' nulls; it is rejected where each of them is rejected at level delta. If it is true, some exit's null
is, and that one is rejected with probability at most delta, whatever the others do: an intersection-union test, which
needs no correction for their number (Berger, 1982).

**Several thresholds.** They are tested in one order, which the certifying samples had no part in, from the full cascade
towards cheaper ones, each at level delta, up to the first that is not rejected. A wrong choice lies at or beyond the
first of them that breaks the promise, and that one was then rejected, which happens with probability at most delta.
Nothing is assumed about how the loss moves along the path; it need not rise.

**The order.** For one threshold it is a fixed grid, closest near where nobody leaves, since energies crowd there. For a
threshold a stage it is searched. A pilot, drawn from the calibration samples and used for nothing else, searches that,
and says where on the path enough samples leave for a test to have a chance; the rest certifies.

Sources: Angelopoulos, Bates, Candes, Jordan, Lei, *Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
Control* (2021), Theorem 1 and section 3 (fixed sequences); R. L. Berger, *Multiparameter hypothesis testing and
acceptance sampling* (1982). The p-values are in `export.bounds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.combine import EnergyDefinition
from cascade.exits import Scores
from cascade.trace import Trace, closed
from export.bounds import binomial_p, difference_p, fewest
from export.rules import Rule

Labels = NDArray[np.int64]
Path = Scores
"""(P, S - 1) float64: thresholds, one for each stage but the last, from the full cascade to the cheapest."""

POINTS = 240
NEAREST = 1e-6  # how close to the ceiling the grid begins, as a share of the range
TRIES = ((3, True), (3, False), (1, False), (0, False))  # losses the first test should survive, and which test
NUISANCE = 0.05  # share of delta that pays for not knowing how often leaving early gains


@dataclass(frozen=True)
class Counts:
    """What was counted at each exit before the last, of each point of a path.

    Attributes:
        left: (..., P, S - 1) samples that left there.
        losses: those whose loss is 1.
        gains: those whose loss is -1.
        samples: all there are, the last stage's included.
    """

    left: NDArray[np.int64]
    losses: NDArray[np.int64]
    gains: NDArray[np.int64]
    samples: int


@dataclass(frozen=True)
class Marks:
    """Which of N samples leave, lose and gain at each exit of each point: (P, S - 1, N) bool each."""

    left: NDArray[np.bool_]
    losses: NDArray[np.bool_]
    gains: NDArray[np.bool_]

    def counts(self, weights: Any = None) -> Counts:
        """Count them.

        Args:
            weights: (R, N), how often each sample is in each of R calibration sets; default once in one.
        """
        if weights is None:
            left, losses, gains = (each.sum(axis=-1) for each in (self.left, self.losses, self.gains))
            return Counts(left, losses, gains, self.left.shape[-1])
        rows = np.asarray(weights, np.float32)  # exact up to 2^24 samples
        left, losses, gains = (
            np.tensordot(rows, each.astype(np.float32), (1, 2)).astype(np.int64)
            for each in (self.left, self.losses, self.gains)
        )
        return Counts(left, losses, gains, int(rows[0].sum()))


def marks(traced: Trace, labels: Labels | None, path: Path) -> Marks:
    """Say what each sample does at each point of a path.

    Args:
        traced: N samples.
        labels: (N,) for the loss in accuracy; None for the loss in agreement.
        path: thresholds.
    """
    full = traced.classes[:, -1]
    shape = (len(path), path.shape[1], len(traced))
    left, losses, gains = (np.zeros(shape, np.bool_) for _ in range(3))
    for point, thresholds in enumerate(path):
        leaving = traced.leaving(tuple(thresholds.tolist()))
        answers = traced.answers(leaving)
        if labels is None:
            lost, gained = answers != full, np.zeros(len(traced), np.bool_)
        else:
            lost, gained = (full == labels) & (answers != labels), (full != labels) & (answers == labels)
        for stage in range(path.shape[1]):
            here = leaving == stage
            left[point, stage], losses[point, stage], gains[point, stage] = here, here & lost, here & gained
    return Marks(left, losses, gains)


@dataclass(frozen=True)
class Plan:
    """How to test, decided on a pilot: each (...) for each of its sets.

    Attributes:
        starts: the first point to be tested.
        credits: whether what is gained by leaving early is credited, by `difference_p`, or ignored, by `binomial_p`.
    """

    starts: NDArray[np.int64]
    credits: NDArray[np.bool_]


def p_values(counts: Counts, path: Path, definition: EnergyDefinition, rule: Rule, plan: Plan) -> Scores:
    """A valid p-value for "these thresholds break the promise", a point: (..., P); 1 before the first that is tested.

    Args:
        counts: of the certifying samples.
        path: thresholds.
        definition: of the energy; it says which exits are closed.
        rule: `accuracy` or `agreement`.
        plan: made without the certifying samples.
    """
    tested = (np.arange(len(path)) >= plan.starts[..., None])[..., None]
    shut: Any = _shut(path, definition)
    losses, gains, samples = counts.losses, counts.gains, counts.left
    if rule.average:
        shut = shut.all(axis=-1, keepdims=True)
        losses, gains = (each.sum(axis=-1, keepdims=True) for each in (losses, gains))
        samples = np.full(losses.shape, counts.samples)
    p = np.ones(losses.shape)
    for credit in (True, False):
        wanted = np.broadcast_to(tested & ~shut & (plan.credits[..., None, None] == credit), p.shape)
        if wanted.any():
            p[wanted] = _p(losses[wanted], gains[wanted], samples[wanted], rule, credit)
    result: Scores = np.where(shut & tested, 0.0, p).max(axis=-1)
    return result


def _p(losses: Any, gains: Any, samples: Any, rule: Rule, credit: bool) -> Scores:
    if credit:
        return difference_p(losses, gains, samples, rule.eps, NUISANCE * rule.delta)
    return binomial_p(losses, samples, rule.eps)


def _shut(path: Path, definition: EnergyDefinition) -> NDArray[np.bool_]:
    """(P, S - 1): whether nobody can leave there."""
    shut: NDArray[np.bool_] = path >= np.asarray(closed(path.shape[1] + 1, definition))
    return shut


def last_accepted(p: Scores, starts: Any, delta: float) -> NDArray[np.int64]:
    """Walk the path from `starts` to the last point before the first whose p-value is above delta.

    Args:
        p: (..., P).
        starts: (...), the first point that is tested.
        delta: level of each test.

    Returns:
        (...) the point; 0, the full cascade, where the first test fails.
    """
    starts = np.asarray(starts, np.int64)
    points = np.arange(p.shape[-1])
    stopped = (p > delta) & (points >= starts[..., None])
    stop = np.where(stopped.any(axis=-1), stopped.argmax(axis=-1), p.shape[-1])
    result: NDArray[np.int64] = np.where(stop > starts, stop - 1, 0)
    return result


def plan(pilot: Counts, samples: int, path: Path, definition: EnergyDefinition, rule: Rule) -> Plan:
    """Choose where on the path to begin, and by which test.

    It begins at the safest point at which so many should leave at every open exit that the test would pass in spite of
    a few losses; the test that credits gains needs more samples for that, and gives more later on.

    Args:
        pilot: counted on samples that certify nothing.
        samples: how many certify.
        path: thresholds.
        definition: of the energy.
        rule: what is to be kept.
    """
    shut: Any = _shut(path, definition)
    left, losses = pilot.left, pilot.losses
    if rule.average:
        left = np.full(left.shape[:-1], pilot.samples)[..., None]
        shut, losses = shut.all(axis=-1, keepdims=True), losses.sum(axis=-1, keepdims=True)
    expected = np.where(shut, np.inf, left * (samples / max(1, pilot.samples))).min(axis=-1)
    hopeless = shut.all(axis=-1) | (~shut & (2 * losses > rule.eps * left)).any(axis=-1)
    expected = np.where(hopeless, -1.0, expected)
    starts, credits = expected.argmax(axis=-1), np.zeros(expected.shape[:-1], np.bool_)
    for tolerated, credit in reversed(TRIES):
        if credit and rule.kind == "agreement":
            continue
        needed = fewest(partial(_p_of, tolerated, rule, credit), rule.delta)
        enough = expected >= needed
        found = enough.any(axis=-1)
        starts = np.where(found, enough.argmax(axis=-1), starts)
        credits = np.where(found, credit, credits)
    return Plan(starts, credits)


def _p_of(tolerated: int, rule: Rule, credit: bool, samples: int) -> float:
    return float(_p(tolerated, 0, samples, rule, credit))


def grid(stages: int, classes: int, definition: EnergyDefinition) -> Path:
    """One threshold for all stages, from where nobody leaves to where everybody does at once; the data has no part."""
    ceiling = 1.0 if definition == "summed" else float(stages - 1)
    shares = np.concatenate([[0.0], np.geomspace(NEAREST, 1, POINTS)])
    line = ceiling - (ceiling - 1 / classes) * shares
    return np.repeat(line[:, None], stages - 1, axis=1)


def searched(pilot: Trace, labels: Labels | None, costs: Sequence[float]) -> Path:
    """A path of thresholds, one a stage, that loses little for what it saves on the pilot.

    From the full cascade on, the threshold of one stage is lowered at a time: the one that saves most for each loss.

    Args:
        pilot: samples that certify nothing.
        labels: (N,) for the loss in accuracy; None for the loss in agreement.
        costs: of a stage.
    """
    ladders = _ladders(pilot)
    at = [0] * len(ladders)
    here = [ladder[0] for ladder in ladders]
    path, now = [tuple(here)], _spent_and_lost(pilot, labels, here, costs)
    while moves := [stage for stage, ladder in enumerate(ladders) if at[stage] + 1 < len(ladder)]:
        tried = []
        for stage in moves:
            there = [*here[:stage], ladders[stage][at[stage] + 1], *here[stage + 1 :]]
            spent, lost = _spent_and_lost(pilot, labels, there, costs)
            saved, more = now[0] - spent, max(lost - now[1], 0.0) + 1 / len(pilot)
            tried.append((saved / more if saved > 0 else saved, stage, there, (spent, lost)))
        _, stage, here, now = max(tried)
        at[stage] += 1
        path.append(tuple(here))
    return np.asarray(path, np.float64)


def _ladders(pilot: Trace, rungs: int = 40) -> list[list[float]]:
    """For each stage but the last: closed, and then energies of the pilot, from the highest to below all."""
    ladders = []
    for stage, ceiling in enumerate(closed(pilot.stages, pilot.definition)):
        energies = pilot.energies[:, stage]
        energies = energies[np.isfinite(energies)]
        marks = np.quantile(energies, np.linspace(1, 0, rungs + 1)[1:]) if len(energies) else np.empty(0)
        ladders.append([ceiling, *np.unique(marks[marks < ceiling])[::-1].tolist(), 0.0])
    return ladders


def _spent_and_lost(
    pilot: Trace, labels: Labels | None, thresholds: Sequence[float], costs: Sequence[float]
) -> tuple[float, float]:
    leaving = pilot.leaving(tuple(thresholds))
    wanted = pilot.classes[:, -1] if labels is None else labels
    wrong = float((pilot.answers(leaving) != wanted).mean())
    return float(np.cumsum(costs)[leaving].mean()), wrong
