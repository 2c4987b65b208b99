"""Losses between features: against float64, by numbers worked out by hand, and what must not change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training import definitions
from training.methods.ab import boundary_loss
from training.methods.at import attention_loss
from training.methods.cc import correlation_loss
from training.methods.crd import contrast
from training.methods.dml import mutual_loss
from training.methods.fitnet import hint_loss
from training.methods.ft import factor_loss
from training.methods.margin_kd import margin_loss
from training.methods.nst import selectivity_loss
from training.methods.pkt import neighbour_loss
from training.methods.rkd import ELEMENTS, angle_loss, angles, distance_loss
from training.methods.semckd import attended_loss, attention, relations
from training.methods.sp import similarity_loss
from training.methods.srrl import representation_loss
from training.methods.vid import information_loss

pytestmark = pytest.mark.train

Loss = Callable[..., Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Any) -> Any:
    return x.double().numpy() if isinstance(x, Tensor) else x


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


MAPS = drawn(6, 3, 8, 8), drawn(6, 5, 8, 8, seed=1)
SMALLER = drawn(6, 3, 4, 4), drawn(6, 5, 7, 7, seed=1)
LARGER = drawn(6, 3, 8, 8), drawn(6, 5, 4, 4, seed=1)
EQUAL = drawn(6, 5, 4, 4), drawn(6, 5, 4, 4, seed=1)
VECTORS = drawn(9, 5), drawn(9, 7, seed=1)
ALIKE = drawn(9, 5), drawn(9, 5, seed=1)
RECTIFIED = drawn(9, 5).relu() + 3, drawn(9, 7, seed=1).relu() + 3


@pytest.mark.parametrize(
    ("loss", "definition", "inputs"),
    [
        (hint_loss, definitions.hint, EQUAL),
        (attention_loss, definitions.at, MAPS),
        (attention_loss, definitions.at, SMALLER),
        (attention_loss, definitions.at, LARGER),
        (similarity_loss, definitions.sp, MAPS),
        (similarity_loss, definitions.sp, SMALLER),
        (correlation_loss, definitions.cc, ALIKE),
        (information_loss, definitions.vid, (EQUAL[0], drawn(5, seed=2).exp(), EQUAL[1])),
        (distance_loss, definitions.rkd_distance, VECTORS),
        (distance_loss, definitions.rkd_distance, RECTIFIED),
        (angle_loss, definitions.rkd_angle, VECTORS),
        (angle_loss, definitions.rkd_angle, RECTIFIED),
        (neighbour_loss, definitions.pkt, VECTORS),
        (selectivity_loss, definitions.nst, MAPS),
        (selectivity_loss, definitions.nst, SMALLER),
        (selectivity_loss, definitions.nst, LARGER),
        (lambda s, t: boundary_loss(s, t, 1.0), definitions.ab, EQUAL),
        (factor_loss, definitions.ft, MAPS),
        (factor_loss, definitions.ft, SMALLER),
        (factor_loss, definitions.ft, LARGER),
        (lambda s, z, n: contrast(s, torch.tensor(z), n), definitions.crd, (drawn(4, 9).exp(), 12.5, 50)),
        (margin_loss, definitions.margin, (*EQUAL, -drawn(5, seed=2).abs())),
        (lambda s, t: mutual_loss(s, [t]), lambda s, t: definitions.kl(s, t, 1.0), ALIKE),
    ],
)
def test_a_loss_agrees_with_float64(loss: Loss, definition: Callable[..., float], inputs: tuple[Any, ...]) -> None:
    assert float(loss(*inputs)) == pytest.approx(definition(*map(exact, inputs)), rel=1e-5)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor held that anything gave back."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = found if isinstance(found, tuple | list) else (found,)
        self.numbers = max(self.numbers, *(x.numel() for x in given if isinstance(x, Tensor)), 0)
        return found


def test_angles_of_256_samples_never_stand_in_memory_all_at_once() -> None:
    student, teacher = drawn(256, 64).requires_grad_(), drawn(256, 64, seed=1)
    with Largest() as seen:  # type: ignore[no-untyped-call]
        angle_loss(student, teacher).backward()
    assert student.grad is not None
    assert 2**20 < seen.numbers <= ELEMENTS < 256**3


def test_srrl_agrees_with_float64() -> None:
    v, t, weight, bias, z = drawn(4, 5), drawn(4, 5, seed=1), drawn(3, 5), drawn(3), drawn(4, 3, seed=1)
    expected = definitions.srrl(*map(exact, (v, t, weight, bias, z)))
    assert float(representation_loss(v, t, functional.linear(v, weight, bias), z)) == pytest.approx(expected, rel=1e-5)


def test_semckd_agrees_with_float64() -> None:
    queries, keys, apart = drawn(4, 2, 6), drawn(4, 3, 6, seed=1), drawn(4, 2, 3, seed=2).exp()
    expected = definitions.semckd(exact(queries), exact(keys), 0.7, exact(apart))
    assert float(attended_loss(attention(queries, keys, 0.7), apart)) == pytest.approx(expected, rel=1e-5)
    assert relations(torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])).tolist() == [[5, 1], [1, 10]]


def test_hints_by_hand() -> None:
    assert float(hint_loss(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 2.0]]))) == 5


def test_attention_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
    assert float(attention_loss(student, teacher)) == pytest.approx((1 + 1) / 2)


def test_similarity_by_hand() -> None:
    student, teacher = torch.eye(2), torch.ones(2, 1)  # rows (1, 0), (0, 1) against (1, 1) / sqrt 2 twice
    half = 0.5**0.5
    assert float(similarity_loss(student, teacher)) == pytest.approx((2 * (1 - half) ** 2 + 2 * half**2) / 4)


def test_correlation_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, -4.0]]), torch.zeros(3, 2)
    assert float(correlation_loss(student, teacher)) == pytest.approx((1 * 3 + 0) / 2)


def test_information_by_hand_and_it_may_be_negative() -> None:
    mean, teacher = torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, 1.0]]]])
    assert float(information_loss(mean, torch.tensor([2.0]), teacher)) == pytest.approx(0.5 * (1 + np.log(2)))
    assert float(information_loss(mean, torch.tensor([0.1]), mean)) < 0


def test_distances_by_hand() -> None:
    student, teacher = column(0, 1, 2), column(0, 1, 3)  # 1, 2, 1 over 4/3 against 1, 3, 2 over 2
    expected = 2 * (0.5 * (0.75 - 0.5) ** 2 + 0 + 0.5 * (0.75 - 1) ** 2) / 9
    assert float(distance_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_angles_by_hand() -> None:
    corner = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    at_the_corner = angles(corner, slice(1, 2))[0]
    assert at_the_corner.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_neighbours_by_hand() -> None:
    student, teacher = torch.eye(2), torch.ones(2, 1)  # rows (2/3, 1/3), (1/3, 2/3) against halves
    expected = 2 * (0.5 * np.log(0.5 * 3 / 2) + 0.5 * np.log(0.5 * 3)) / 4
    assert float(neighbour_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_selectivity_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[3.0, 4.0]], [[0.0, 1.0]]]])
    own, crossed = (1 + 1 + 2 * 0.64) / 4, (0.36 + 0) / 2
    assert float(selectivity_loss(student, teacher)) == pytest.approx(own + 1 - 2 * crossed)


def test_boundaries_by_hand() -> None:
    student, teacher = column(-2.0, 0.0, 0.5, 2.0, 0.5), column(-1.0, -1.0, 3.0, 3.0, 0.0)
    assert float(boundary_loss(student, teacher, 1.0)) == pytest.approx((0 + 1 + 0.25 + 0 + 2.25) / 5)


def test_factors_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert float(factor_loss(student, teacher)) == 1


def test_contrast_by_hand() -> None:
    scores = torch.tensor([[3.0, 1.0]])  # m / N = 1/2, Z = 2
    expected = -np.log(1.5 / 2) - np.log(0.5 / 1)
    assert float(contrast(scores, torch.tensor(2.0), 2)) == pytest.approx(expected, rel=1e-5)


def test_more_than_one_peer_counts_by_the_mean() -> None:
    own, one, other = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    expected = (mutual_loss(own, [one]) + mutual_loss(own, [other])) / 2
    torch.testing.assert_close(mutual_loss(own, [one, other]), expected)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (hint_loss, (6, 5, 4, 4)),
        (attention_loss, (6, 5, 4, 4)),
        (similarity_loss, (6, 5, 4, 4)),
        (selectivity_loss, (6, 5, 4, 4)),
        (factor_loss, (6, 5, 4, 4)),
        (distance_loss, (6, 5)),
        (angle_loss, (6, 5)),
        (neighbour_loss, (6, 5)),
        (lambda s, t: mutual_loss(s, [t]), (6, 5)),
        (lambda s, t: representation_loss(s, t, 2 * s, 2 * t), (6, 5)),
        (lambda s, t: attended_loss(torch.ones(6, 1, 1), (s - t).square().mean(1)[:, None, None]), (6, 5)),
    ],
)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss: Loss, shape: tuple[int, ...]) -> None:
    same = drawn(*shape)
    assert float(loss(same, same.clone())) == pytest.approx(0, abs=1e-6)


def per_sample(x: Tensor) -> Tensor:
    """Each sample by a positive constant of its own."""
    return x * drawn(len(x), seed=5).exp().view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize(
    ("loss", "inputs", "scale"),
    [
        (attention_loss, MAPS, per_sample),
        (selectivity_loss, MAPS, per_sample),
        (neighbour_loss, VECTORS, per_sample),
        (similarity_loss, MAPS, lambda x: 3 * x),
        (distance_loss, VECTORS, lambda x: 3 * x),
        (angle_loss, VECTORS, lambda x: 3 * x),
    ],
)
def test_the_scale_of_features_does_not_matter(
    loss: Loss, inputs: tuple[Tensor, Tensor], scale: Callable[[Tensor], Tensor]
) -> None:
    student, teacher = inputs
    expected = float(loss(student, teacher))
    assert float(loss(scale(student), teacher)) == pytest.approx(expected, rel=1e-4)
    assert float(loss(student, scale(teacher))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (attention_loss, MAPS),
        (similarity_loss, MAPS),
        (selectivity_loss, MAPS),
        (factor_loss, MAPS),
        (distance_loss, VECTORS),
        (angle_loss, VECTORS),
        (neighbour_loss, VECTORS),
    ],
)
def test_dead_features_give_neither_nan_nor_a_gradient_without_end(loss: Loss, inputs: tuple[Tensor, Tensor]) -> None:
    student = inputs[0].clone()
    student[0], student[1] = 0, 0
    student.requires_grad = True
    found = loss(student, inputs[1])
    found.backward()
    assert torch.isfinite(found)
    assert student.grad is not None
    assert student.grad.abs().max() < 100


def test_angles_in_blocks_are_those_at_once_and_so_are_gradients() -> None:
    whole, blocks = (VECTORS[0].clone().requires_grad_() for _ in range(2))
    at_once, in_blocks = angle_loss(whole, VECTORS[1]), angle_loss(blocks, VECTORS[1], elements=200)
    at_once.backward()
    in_blocks.backward()
    torch.testing.assert_close(in_blocks, at_once)
    torch.testing.assert_close(blocks.grad, whole.grad)
