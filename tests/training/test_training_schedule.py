"""Learning rates at points worked out by hand."""

from __future__ import annotations

import pytest

from training.schedule import learning_rate
from training.settings import Schedule

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    ("progress", "lr"), [(0.0, 0.2), (0.59, 0.2), (0.6, 0.02), (0.79, 0.02), (0.8, 0.002), (0.99, 0.002)]
)
def test_a_step_divides_by_ten_at_each_milestone(progress: float, lr: float) -> None:
    schedule = Schedule(lr=0.2, policy="step", milestones=(0.6, 0.8))
    assert learning_rate(schedule, progress) == pytest.approx(lr)


@pytest.mark.parametrize(("progress", "lr"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1 / 3, 0.75), (2 / 3, 0.25)])
def test_a_cosine_falls_from_the_peak_to_nothing(progress: float, lr: float) -> None:
    assert learning_rate(Schedule(lr=1.0, policy="cosine"), progress) == pytest.approx(lr)


@pytest.mark.parametrize(
    ("progress", "lr"), [(0.0, 0.04), (0.1, 0.52), (0.2, 1.0), (0.6, 0.5), (0.2 + 0.8 / 3, 0.75), (1.0, 0.0)]
)
def test_one_cycle_climbs_in_a_line_and_falls_on_a_cosine(progress: float, lr: float) -> None:
    schedule = Schedule(lr=1.0, policy="one_cycle", warmup=0.2)
    assert learning_rate(schedule, progress) == pytest.approx(lr)


@pytest.mark.parametrize("policy", ["step", "cosine", "one_cycle"])
def test_the_peak_is_never_exceeded(policy: str) -> None:
    schedule = Schedule.model_validate({"lr": 0.3, "policy": policy})
    assert max(learning_rate(schedule, place / 100) for place in range(100)) <= 0.3
