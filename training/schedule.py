"""Learning rates as a pure function of how far a run has come, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from training.settings import Schedule


def learning_rate(schedule: Schedule, progress: float) -> float:
    """The learning rate at a point of the run.

    Args:
        schedule: policy and peak.
        progress: share of the run's batches that are done, in [0, 1).
    """
    if schedule.policy == "step":
        return float(schedule.lr * schedule.factor ** sum(progress >= milestone for milestone in schedule.milestones))
    warmup = schedule.warmup if schedule.policy == "one_cycle" else 0.0
    if progress < warmup:
        return schedule.lr * (0.04 + 0.96 * progress / warmup)
    falling = (progress - warmup) / (1 - warmup)
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * falling))
