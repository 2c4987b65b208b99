"""Several teachers: what they weigh, against a search over all weights, and the losses against NumPy."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascade.errors import RecipeError
from tests.training.networks import Says, batch, frozen, networks, training_set
from training.methods.aekd import kl_slope
from training.methods.base import Method, Networks, find
from training.methods.kd import kl
from training.methods.min_norm import shortest, weights_of

pytestmark = pytest.mark.train

Array = NDArray[np.float64]
BATCH = batch(*[0, 1, 2, 3] * 4)
LOGITS = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(0)).tolist()


def said(name: str, **settings_: Any) -> dict[str, float]:
    """A method's losses where the student and three teachers say known things."""
    kind, config = find({"name": name, **settings_})
    student, *teachers = (Says(*logits) for logits in LOGITS)
    nets = Networks(student, teachers[0], (), tuple(teachers[1:]))
    found = kind(config, nets, training_set()).losses(BATCH)
    return {key: float(loss.detach()) for key, loss in found.items()}


def softened(x: Array) -> Array:
    powers = np.exp(x / 4)
    total: Array = powers / powers.sum(1, keepdims=True)
    return total


def divergences() -> list[float]:
    p, *others = (softened(np.array(logits)) for logits in LOGITS)
    return [float(16 * (q * np.log(q / p)).sum(1).mean()) for q in others]


def by_faces(gram: Array, bound: float) -> Array:
    """The weights of the least `a G a`: on every face of the polytope the stationary point, if it lies there."""
    count, found = len(gram), []
    for face in itertools.product((0.0, bound, None), repeat=count):
        free = [place for place, value in enumerate(face) if value is None]
        a = np.array([value or 0.0 for value in face])
        rest = 1 - a.sum()
        if free:
            system = np.block([[gram[np.ix_(free, free)], np.ones((len(free), 1))], [np.ones((1, len(free))), 0.0]])
            a[free] = np.linalg.lstsq(system, np.append(-(gram @ a)[free], rest), rcond=None)[0][:-1]
        if abs(a.sum() - 1) < 1e-9 and a.min() > -1e-9 and a.max() < bound + 1e-9:
            found.append(a)
    return min(found, key=lambda a: float(a @ gram @ a))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.4, 0.6, 1.0]), st.sampled_from([2, 7]))
def test_no_other_weights_give_a_shorter_sum(seed: int, count: int, bound: float, width: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    gram = vectors @ vectors.T
    weights = shortest(torch.from_numpy(gram), bound).numpy()
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights.max() <= max(bound, 1 / count) + 1e-12
    if bound * count > 1:
        least = by_faces(gram, bound)
        assert float(weights @ gram @ weights) <= float(least @ gram @ least) + 1e-9 * np.abs(gram).max()


@pytest.mark.parametrize("bound", [0.2, 0.3, 0.6, 1.0])
def test_moving_weight_between_any_two_of_eight_makes_the_sum_no_shorter(bound: float) -> None:
    gram = torch.cov(torch.randn(8, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5)
    weights = shortest(gram, bound)
    slope = gram @ weights
    assert float(slope[weights > 1e-6].max()) <= float(slope[weights < min(bound, 1.0) - 1e-6].min()) + 1e-8


def test_the_weights_do_not_depend_on_the_scale() -> None:
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert weights_of(vectors * 1e-9, 0.6).tolist() == pytest.approx(weights_of(vectors, 0.6).tolist(), abs=1e-9)


def test_a_short_vector_weighs_as_much_as_it_may() -> None:
    assert weights_of(torch.tensor([[1.0, 0.0], [0.0, 9.0], [0.0, 8.0]]), 0.6).tolist() == pytest.approx(
        [0.6, 0.0, 0.4]
    )


def test_equal_vectors_weigh_alike() -> None:
    assert weights_of(torch.ones(3, 2), 0.6).tolist() == pytest.approx([1 / 3] * 3)
    assert weights_of(torch.zeros(3, 2), 0.6, normalise=True).tolist() == pytest.approx([1 / 3] * 3)


def test_a_bound_below_the_mean_leaves_one_choice() -> None:
    assert weights_of(torch.tensor([[1.0], [2.0], [3.0]]), 0.2).tolist() == pytest.approx([1 / 3] * 3)


def test_normalised_weights_are_divided_by_the_lengths_and_sum_to_one() -> None:
    vectors = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert weights_of(vectors, 1.0, normalise=True).tolist() == pytest.approx([0.25, 0.75])


def test_the_slope_of_the_divergence_is_its_gradient() -> None:
    student = torch.tensor(LOGITS[0], requires_grad=True)
    target = torch.tensor(LOGITS[1])
    (gradient,) = torch.autograd.grad(kl(student, target, 4.0), student)
    assert torch.allclose(kl_slope(student.detach(), target, 4.0), gradient, atol=1e-7)


def test_aveg_is_the_mean_divergence() -> None:
    assert said("aveg")["kd"] == pytest.approx(np.mean(divergences()), rel=1e-5)


def test_aveg_has_the_gradient_of_the_mean_target() -> None:
    student, *targets = (torch.tensor(logits, dtype=torch.float64) for logits in LOGITS)
    student.requires_grad_()
    mean = torch.stack([torch.softmax(target / 4, 1) for target in targets]).mean(0)
    (one,) = torch.autograd.grad(torch.stack([kl(student, target, 4.0) for target in targets]).mean(), student)
    (other,) = torch.autograd.grad(kl(student, 4 * mean.log(), 4.0), student)
    assert torch.allclose(one, other)


def test_aekd_weighs_the_divergences_by_the_shortest_gradient() -> None:
    p, *others = (softened(np.array(logits)) for logits in LOGITS)
    vectors = np.stack([(p - q).mean(0) for q in others])
    weights = by_faces(vectors @ vectors.T, 0.6)
    assert not np.allclose(weights, 1 / 3, atol=0.05)
    assert said("aekd")["kd"] == pytest.approx(float(weights @ np.array(divergences())), rel=1e-5)


@pytest.mark.parametrize("name", ["aveg", "aekd"])
def test_the_labels_count_as_they_are_told(name: str) -> None:
    logits = torch.tensor(LOGITS[0])
    expected = float(torch.nn.functional.cross_entropy(logits, BATCH.labels))
    assert said(name, ce=0.5)["ce"] == pytest.approx(0.5 * expected, rel=1e-6)


def test_one_teacher_weighs_everything() -> None:
    kind, config = find({"name": "aekd"})
    made = kind(config, Networks(Says(*LOGITS[0]), Says(*LOGITS[1])), training_set())
    assert float(made.losses(BATCH)["kd"].detach()) == pytest.approx(divergences()[0], rel=1e-5)


def test_a_method_for_one_teacher_refuses_several() -> None:
    kind, config = find({"name": "kd"})
    with pytest.raises(RecipeError, match="'kd' learns from one teacher, and the recipe has 2"):
        kind(config, Networks(Says(*LOGITS[0]), Says(*LOGITS[1]), (), (Says(*LOGITS[2]),)), training_set())


def hinted(**settings_: Any) -> Method:
    kind, config = find({"name": "aekd_f", **settings_})
    nets = replace(networks(earlier=0), more_teachers=(frozen("resnet8_0.25_a", 7), frozen("resnet8_0.5_a", 8)))
    return kind(config, nets, training_set())


def test_the_hints_are_weighed_by_the_gradients_with_respect_to_the_students_map() -> None:
    made = hinted(hint=1, beta=10.0).eval()
    whole: Any = copy.deepcopy(made).double()
    images = BATCH.images.double()
    x = whole.student.run_to(images, 1)
    hints = [teacher.double().run_to(images, 1) for teacher in whole.nets.teachers]
    terms = [(regress(x) - hint).square().mean() for regress, hint in zip(whole.regressors, hints, strict=True)]
    slopes = np.stack([torch.autograd.grad(term, x, retain_graph=True)[0].mean(0).flatten().numpy() for term in terms])
    lengths = np.sqrt((slopes**2).sum(1))
    units = slopes / lengths[:, None]
    weights = by_faces(units @ units.T, 0.6) / lengths
    expected = 10 * float(weights @ torch.stack(terms).detach().numpy()) / weights.sum()
    assert float(made.losses(BATCH)["hint"].detach()) == pytest.approx(expected, rel=1e-5)


def test_the_hints_can_wait_for_the_second_epoch_even_of_a_run_that_was_stopped() -> None:
    made = hinted(warm_up=True).train()
    assert "hint" not in made.losses(BATCH)
    again = hinted(warm_up=True).train()
    again.load_state_dict(made.state_dict())
    assert "hint" in again.losses(BATCH)


def test_a_hint_that_some_network_has_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="hint 4 is no map of all networks: take 0 to 3"):
        hinted(hint=4)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("resnet8_0.25_a", "mobilenetv2_half"), ("mobilenetv2_half", "resnet8_0.25_a"), ("vgg8", "mobilenetv2_half")],
)
@pytest.mark.parametrize("hint", [0, 2, 3])
def test_hints_pass_between_maps_of_any_sizes(student: str, teacher: str, hint: int) -> None:
    kind, config = find({"name": "aekd_f", "hint": hint})
    made = kind(config, Networks(frozen(student, 1), frozen(teacher, 2)), training_set(size=32)).eval()
    made.requires_grad_()
    assert torch.isfinite(made.losses(batch(0, 1, side=32))["hint"])
