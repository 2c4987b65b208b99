"""What made images are judged by: against float64, and by numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training import definitions
from training.methods.maps import unit
from training.synthesis.losses import (
    activation_loss,
    adversarial_loss,
    contrastive_loss,
    entropy_loss,
    one_hot_loss,
)
from training.synthesis.statistics import Seen, instance_means, statistics_loss

pytestmark = pytest.mark.train

EXACT = 1e-5


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def exact(x: Tensor) -> definitions.Array:
    return x.double().numpy()


STUDENT, TEACHER = drawn(40, 7, scale=3), drawn(40, 7, seed=1, scale=3)
SEEN = [
    Seen(drawn(6, 5, 4, 4, seed=2, scale=2), drawn(5, seed=3), drawn(5, seed=4).abs()),
    Seen(drawn(6, 3, 8, 8, seed=5) + 1, drawn(3, seed=6), drawn(3, seed=7).abs()),
]


@pytest.mark.parametrize("where_agreed", [False, True])
def test_the_adversarial_loss_is_that_of_its_definition(where_agreed: bool) -> None:
    found = adversarial_loss(STUDENT, TEACHER, where_agreed=where_agreed)
    expected = definitions.adversarial(exact(STUDENT), exact(TEACHER), where_agreed)
    assert found.item() == pytest.approx(expected, rel=EXACT)


def test_the_adversarial_loss_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log()
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert adversarial_loss(student, teacher).item() == pytest.approx(-(first + second) / 2)
    assert adversarial_loss(student, teacher, where_agreed=True).item() == pytest.approx(-first / 2)


def test_where_nobody_agrees_nothing_is_gained() -> None:
    assert adversarial_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), where_agreed=True).item() == 0


def test_the_one_hot_loss_is_that_of_its_definition() -> None:
    assert one_hot_loss(TEACHER).item() == pytest.approx(definitions.one_hot(exact(TEACHER)), rel=EXACT)


def test_the_activation_loss_is_that_of_its_definition() -> None:
    assert activation_loss(STUDENT).item() == pytest.approx(definitions.activation(exact(STUDENT)), rel=EXACT)


def test_the_entropy_loss_is_that_of_its_definition() -> None:
    assert entropy_loss(TEACHER).item() == pytest.approx(definitions.entropy(exact(TEACHER)), rel=EXACT)


def test_the_entropy_loss_is_lowest_where_all_classes_are_alike() -> None:
    assert entropy_loss(torch.zeros(3, 4)).item() == pytest.approx(-math.log(4))
    assert entropy_loss(100 * torch.eye(4)).item() == pytest.approx(-math.log(4))


def test_a_class_that_never_comes_leaves_the_entropy_loss_and_its_gradient_finite() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    entropy_loss(logits).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_statistics_loss_is_that_of_its_definition() -> None:
    expected = definitions.statistics(*(list(map(exact, parts)) for parts in zip(*map(fields, SEEN), strict=True)))
    assert statistics_loss(SEEN).item() == pytest.approx(expected, rel=EXACT)


def fields(one: Seen) -> tuple[Tensor, Tensor, Tensor]:
    return one.maps, one.mean, one.variance


def test_maps_as_they_are_remembered_have_no_statistics_loss() -> None:
    maps = drawn(4, 3, 5, 5)
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
    assert statistics_loss([Seen(maps, mean, variance)]).item() == pytest.approx(0, abs=1e-6)


def test_features_are_the_spatial_means_side_by_side() -> None:
    expected = np.concatenate([exact(one.maps).mean((2, 3)) for one in SEEN], 1)
    np.testing.assert_allclose(instance_means(SEEN).numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("current", [4, 12])
def test_the_contrastive_loss_is_that_of_its_definition(current: int) -> None:
    local, whole = unit(drawn(12, 5)), unit(drawn(12, 5, seed=1))
    expected = definitions.contrastive(exact(local), exact(whole), 0.1, current)
    assert contrastive_loss(local, whole, 0.1, current).item() == pytest.approx(expected, rel=EXACT)


def test_only_the_parts_learn_from_the_contrast() -> None:
    local, whole = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    contrastive_loss(local, whole, 0.5, 4).backward()
    assert local.grad is not None
    assert whole.grad is None
