"""FSP: matrices of consecutive maps, against float64 and by hand, and networks of equal and of other widths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.training import definitions
from tests.training.networks import batch, frozen, networks, training_set
from training import models
from training.methods.base import Method, Networks, find
from training.methods.fsp import FSP, Flows, flow, flow_loss
from training.models import Network

pytestmark = pytest.mark.train

LABELS = [0, 1, 2, 3] * 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(channels: tuple[int, int], sides: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    one, other = (drawn(3, c, side, side, seed=seed + c) for c, side in zip(channels, sides, strict=True))
    return one, other


def made(nets: Networks | None = None, **settings: object) -> FSP:
    kind, config = find({"name": "fsp", **settings})
    how = kind(config, nets or networks(), training_set())
    assert isinstance(how, FSP)
    return how


def alike() -> Networks:
    return Networks(models.build("resnet8_0.25_a", 4).eval(), frozen("resnet8_0.25_a", 1))


def first(how: FSP) -> Method:
    return how.phases()[0].method


@pytest.mark.parametrize("teacher_sides", [(8, 4), (4, 8), (5, 5), (7, 3)])
def test_the_loss_agrees_with_float64(teacher_sides: tuple[int, int]) -> None:
    student, teacher = maps((4, 6), (8, 4), 0), maps((4, 6), teacher_sides, 9)
    expected = definitions.fsp(*(tuple(x.double().numpy() for x in pair) for pair in (student, teacher)))
    assert float(flow_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_a_matrix_by_hand() -> None:
    one = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]])  # two channels of two pixels
    other = torch.tensor([[[[3.0, 1.0]]]])
    assert flow(one, other).tolist() == [[[(3 + 2) / 2], [(0 + 4) / 2]]]


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    pair = maps((4, 6), (8, 4), 0)
    assert float(flow_loss(pair, (pair[0].clone(), pair[1].clone()))) == 0


def test_the_first_phase_sums_over_the_stem_and_every_stage_without_a_weight() -> None:
    nets = alike()
    how = first(made(nets)).eval()
    assert isinstance(how, Flows)
    assert all(isinstance(connect, nn.Identity) for connect in how.connectors)
    assert isinstance(nets.student, Network)
    assert isinstance(nets.teacher, Network)
    images = batch(*LABELS).images
    with torch.no_grad():
        ours, theirs = (pairwise(net.features(images).maps[:-1]) for net in (nets.student, nets.teacher))
        expected = sum(float(flow_loss(s, t)) for s, t in zip(ours, theirs, strict=True))
    assert how.losses(batch(*LABELS))["fsp"].item() == pytest.approx(expected, rel=1e-5)


def test_networks_of_other_widths_learn_through_connectors_that_only_the_first_phase_moves() -> None:
    how = made()
    connectors = set(how.connectors.parameters())
    assert connectors
    assert connectors <= set(first(how).trainable())
    assert not connectors & set(how.trainable())
    assert set(how.losses(batch(*LABELS))) == {"ce"}


def test_the_term_may_stay_beside_the_labels_with_its_weight() -> None:
    how = made(keep=True).eval()
    assert set(how.connectors.parameters()) <= set(how.trainable())
    found = how.losses(batch(*LABELS))
    assert found["fsp"].item() == pytest.approx(50 * first(how).eval().losses(batch(*LABELS))["fsp"].item(), rel=1e-5)
    assert set(found) == {"ce", "fsp"}


@pytest.mark.parametrize("keep", [{}, {"keep": False}], ids=str)
def test_a_weight_of_a_term_that_does_not_stay_is_refused(keep: dict[str, bool]) -> None:
    with pytest.raises(RecipeError, match="say keep: true, or leave weight out"):
        find({"name": "fsp", "weight": 50, **keep})


def test_the_weight_of_the_term_that_stays_may_be_given() -> None:
    assert find({"name": "fsp", "weight": 2, "keep": True})[1].model_dump()["weight"] == 2
