"""Unit vectors and pooling, which several losses share."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from training.methods.maps import pool_match, pooled, unit

pytestmark = pytest.mark.train


def test_a_vector_is_divided_by_its_length() -> None:
    assert unit(torch.tensor([[3.0, 4.0], [0.0, -2.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, -1]]


def test_a_vector_of_zeros_stays_one_and_gets_no_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    unit(x).sum().backward()
    assert torch.equal(unit(x), torch.zeros(2, 3))
    assert torch.equal(x.grad if x.grad is not None else x + 1, torch.zeros(2, 3))


@pytest.mark.parametrize(("sides", "wanted"), [((8, 8), (4, 4)), ((7, 7), (3, 3)), ((5, 6), (2, 5)), ((4, 4), (4, 4))])
def test_pooling_is_torchs_own(sides: tuple[int, int], wanted: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(x, *wanted), functional.adaptive_avg_pool2d(x, wanted))


def test_the_larger_of_two_maps_is_pooled_to_the_smaller_whichever_it_is() -> None:
    large, small = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 2, 2, 2)
    expected = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    for one, other in (pool_match(large, small), pool_match(small, large)[::-1]):
        assert torch.equal(one, expected)
        assert other is small
