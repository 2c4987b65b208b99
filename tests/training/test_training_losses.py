"""Losses by numbers worked out by hand, and against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade.errors import RecipeError
from tests.training.networks import Says, batch, frozen, training_set
from training.methods.base import Networks, find
from training.methods.kd import kl, l2
from training.methods.res_kd import sum_of

pytestmark = pytest.mark.train

HALF, QUARTER = math.log(0.5), math.log(0.25)
THREE_QUARTERS = math.log(0.75)
STUDENT = [[1.0, 2.0], [0.0, 0.0]]
TEACHER = [[3.0, 5.0], [0.0, 2.0]]
EARLIER = [[0.5, 0.0], [1.0, -1.0]]
LATER = [[0.25, 0.25], [0.0, 2.0]]
CE_STUDENT = (math.log(1 + math.exp(-1)) + math.log(2)) / 2  # labels 1 and 0


def losses(settings: dict[str, Any], earlier: tuple[list[list[float]], ...] = ()) -> dict[str, float]:
    """A method's losses where every network's logits are known; labels 1 and 0."""
    kind, config = find(settings)
    nets = Networks(Says(*STUDENT), Says(*TEACHER), tuple(Says(*logits) for logits in earlier))
    return {
        name: float(value.detach()) for name, value in kind(config, nets, training_set()).losses(batch(1, 0)).items()
    }


def tensors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 100, generator=generator) * 5, torch.randn(32, 100, generator=generator) * 5


def softened(logits: Tensor, t: float) -> NDArray[np.float64]:
    values = logits.double().numpy() / t
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def test_kl_by_hand() -> None:
    student, teacher = torch.tensor([[HALF, HALF]]), torch.tensor([[THREE_QUARTERS, QUARTER]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(kl(student, teacher, 1.0)) == pytest.approx(expected)


def test_kl_is_multiplied_by_the_square_of_the_temperature() -> None:
    student, teacher = torch.tensor([[HALF, HALF]]), torch.tensor([[THREE_QUARTERS, QUARTER]])
    expected = 9 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(kl(3 * student, 3 * teacher, 3.0)) == pytest.approx(expected)


def test_kl_has_the_teacher_as_its_target() -> None:
    student, teacher = torch.tensor([[HALF, HALF]]), torch.tensor([[THREE_QUARTERS, QUARTER]])
    assert float(kl(student, teacher, 1.0)) != pytest.approx(float(kl(teacher, student, 1.0)), rel=0.01)


def test_kl_is_a_mean_over_the_batch() -> None:
    student, teacher = tensors()
    halves = [float(kl(student[part], teacher[part], 4.0)) for part in (slice(16), slice(16, None))]
    assert float(kl(student, teacher, 4.0)) == pytest.approx(sum(halves) / 2, rel=1e-5)


@pytest.mark.parametrize("t", [1.0, 4.0, 20.0])
def test_kl_agrees_with_float64(t: float) -> None:
    student, teacher = tensors()
    p, q = softened(student, t), softened(teacher, t)
    expected = t**2 * (q * (np.log(q) - np.log(p))).sum(axis=1).mean()
    assert float(kl(student, teacher, t)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 6.5), ("sum", 13.0)])
def test_l2_of_logits_by_hand(reduce: str, expected: float) -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    assert float(l2(student, teacher, 20.0, "logits", reduce)) == pytest.approx(expected)


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 0.0625), ("sum", 0.125)])
def test_l2_of_probabilities_by_hand(reduce: str, expected: float) -> None:
    student, teacher = torch.tensor([[HALF, HALF]]), torch.tensor([[THREE_QUARTERS, QUARTER]])
    assert float(l2(student, teacher, 1.0, "probs", reduce)) == pytest.approx(expected)
    assert float(l2(2 * student, 2 * teacher, 2.0, "probs", reduce)) == pytest.approx(4 * expected)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("t", [1.0, 20.0])
def test_l2_agrees_with_float64(reduce: str, t: float) -> None:
    student, teacher = tensors()
    logits = (student.double() - teacher.double()).square().numpy()
    probabilities = t**2 * (softened(student, t) - softened(teacher, t)) ** 2
    for space, squares in (("logits", logits), ("probs", probabilities)):
        expected = squares.mean() if reduce == "mean" else squares.sum(axis=1).mean()
        assert float(l2(student, teacher, t, space, reduce)) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_cancels_in_the_l2_of_logits() -> None:
    student, teacher = tensors()
    assert torch.equal(l2(student, teacher, 1.0, "logits", "mean"), l2(student, teacher, 25.0, "logits", "mean"))


def test_kd_weighs_the_teacher_by_tau_and_the_labels_by_the_rest() -> None:
    found = losses({"name": "kd", "tau": 0.3})
    squares = (4 + 9 + 0 + 4) / 4
    assert found == pytest.approx({"ts": 0.3 * squares, "ce": 0.7 * CE_STUDENT})


def test_kd_with_tau_zero_is_supervised_training() -> None:
    assert losses({"name": "kd", "tau": 0}) == pytest.approx({"ts": 0, "ce": CE_STUDENT})


def test_kd_with_tau_one_never_sees_the_labels() -> None:
    assert losses({"name": "kd", "tau": 1}) == pytest.approx({"ts": 4.25, "ce": 0})


@pytest.mark.parametrize("settings", [{"ts_loss": "kl", "t": 4.0}, {"l2_space": "probs"}, {"l2_reduce": "sum"}])
def test_kd_hands_its_settings_to_the_loss(settings: dict[str, Any]) -> None:
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    expected = {
        "ts_loss": kl(student, teacher, 4.0),
        "l2_space": l2(student, teacher, 20.0, "probs", "mean"),
        "l2_reduce": l2(student, teacher, 20.0, "logits", "sum"),
    }[next(iter(settings))]
    assert losses({"name": "kd", "tau": 0.5, **settings})["ts"] == pytest.approx(0.5 * float(expected))


@pytest.mark.parametrize("settings", [{"tau": -0.1}, {"tau": 1.1}, {"t": 0}, {"ts_loss": "l1"}, {"l2_space": "pixels"}])
@pytest.mark.parametrize("name", ["kd", "res_kd"])
def test_a_setting_out_of_range_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        find({"name": name, **settings})


def test_vanilla_is_cross_entropy() -> None:
    assert losses({"name": "vanilla"}) == pytest.approx({"ce": CE_STUDENT})


def test_label_smoothing_spreads_a_share_of_the_target_over_all_classes() -> None:
    wrong = (math.log(1 + math.exp(1)) + math.log(2)) / 2  # the loss had the labels been 0 and 1
    expected = 0.9 * CE_STUDENT + 0.1 * (CE_STUDENT + wrong) / 2
    assert losses({"name": "vanilla", "label_smoothing": 0.1}) == pytest.approx({"ce": expected})


def res_kd(ce_on: str, **settings: Any) -> dict[str, float]:
    return losses({"name": "res_kd", "tau": 0.1, "ce_on": ce_on, **settings}, (EARLIER, LATER))


def residual_squares() -> float:
    """R - (T - S_0 - R_1), squared, on average."""
    gap = np.array(TEACHER) - np.array(EARLIER) - np.array(LATER)
    return float(((np.array(STUDENT) - gap) ** 2).mean())


def cross_entropy(logits: NDArray[np.float64], labels: list[int]) -> float:
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    return float(-np.log(probabilities[range(len(labels)), labels]).mean())


def test_a_res_student_learns_what_the_sum_lacks_and_is_judged_alone() -> None:
    assert res_kd("res") == pytest.approx({"ts": 0.1 * residual_squares(), "ce": 0.9 * CE_STUDENT})


def test_with_sum_the_labels_judge_what_is_served() -> None:
    judged = np.array(EARLIER) + np.array(LATER) + np.array(STUDENT)
    expected = {"ts": 0.1 * residual_squares(), "ce": 0.9 * cross_entropy(judged, [1, 0])}
    assert res_kd("sum") == pytest.approx(expected)


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_with_none_there_are_no_labels_and_tau_has_no_say(tau: float) -> None:
    assert res_kd("none", tau=tau) == pytest.approx({"ts": residual_squares()})


def test_with_l2_of_logits_the_residual_term_is_that_of_the_sum_and_the_teacher() -> None:
    served = torch.tensor(EARLIER) + torch.tensor(LATER) + torch.tensor(STUDENT)
    expected = float(l2(served, torch.tensor(TEACHER), 20.0, "logits", "mean"))
    assert res_kd("sum")["ts"] == pytest.approx(0.1 * expected)


def test_kl_with_sum_compares_the_sum_with_the_teacher() -> None:
    served = torch.tensor(EARLIER) + torch.tensor(LATER) + torch.tensor(STUDENT)
    expected = float(kl(served, torch.tensor(TEACHER), 4.0))
    assert res_kd("sum", ts_loss="kl", t=4.0)["ts"] == pytest.approx(0.1 * expected)


@pytest.mark.parametrize("ce_on", ["res", "none"])
def test_kl_otherwise_compares_the_residual_with_the_residual_teacher(ce_on: str) -> None:
    gap = torch.tensor(TEACHER) - torch.tensor(EARLIER) - torch.tensor(LATER)
    expected = float(kl(torch.tensor(STUDENT), gap, 4.0)) * (1 if ce_on == "none" else 0.1)
    assert res_kd(ce_on, ts_loss="kl", t=4.0)["ts"] == pytest.approx(expected)


def test_the_sum_is_held_still_while_a_res_student_learns() -> None:
    kind, config = find({"name": "res_kd", "ce_on": "sum"})
    earlier, student, teacher = Says(*EARLIER), Says(*STUDENT), Says(*TEACHER)
    trained = kind(config, Networks(student, teacher, (earlier,)), training_set())
    sum(trained.losses(batch(1, 0)).values(), torch.tensor(0.0)).backward()
    assert student.logits.grad is not None
    assert earlier.logits.grad is None
    assert teacher.logits.grad is None


def test_taking_residuals_away_one_by_one_is_taking_away_the_sum() -> None:
    images = batch(*range(4), side=32).images
    teacher = frozen("resnet8_0.5_a", 1)
    stages = tuple(frozen("resnet8_0.25_a", seed) for seed in range(2, 5))
    step_by_step = teacher(images)
    for number, stage in enumerate(stages):
        step_by_step = step_by_step - stage(images)
        at_once = teacher(images) - sum_of(stages[: number + 1], images)
        torch.testing.assert_close(step_by_step, at_once, rtol=1e-5, atol=1e-5)


def test_a_res_student_cannot_be_the_first() -> None:
    kind, config = find({"name": "res_kd"})
    with pytest.raises(RecipeError, match="under residual, after a student"):
        kind(config, Networks(Says(*STUDENT), Says(*TEACHER)), training_set())


def test_half_precision_logits_are_compared_in_float32() -> None:
    kind, config = find({"name": "res_kd"})
    nets = Networks(Says(*STUDENT).bfloat16(), Says(*TEACHER).bfloat16(), (Says(*EARLIER).bfloat16(),))
    assert {loss.dtype for loss in kind(config, nets, training_set()).losses(batch(1, 0)).values()} == {torch.float32}
