"""The margin and the distance by numbers worked out by hand, and the baselines that use them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.training.networks import Says, batch, frozen, networks, training_set
from training import models
from training.methods.base import Method, Networks, find
from training.methods.margin_kd import MapDistance, connector, last_norm, margin_loss, margins
from training.models.contract import Stage
from training.models.resnet import BasicBlock

pytestmark = pytest.mark.train

HALF_NORMAL = -math.sqrt(2 / math.pi)


def norm(weight: list[float], bias: list[float]) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(len(weight))
    made.weight.data, made.bias.data = torch.tensor(weight), torch.tensor(bias)
    return made


def maps(*channels: float) -> Tensor:
    """(1, C, 1, 1)."""
    return torch.tensor(channels)[None, :, None, None]


def margin_kd(nets: Networks | None = None, **settings: object) -> Method:
    kind, config = find({"name": "margin_kd", **settings})
    return kind(config, nets or networks(), training_set())


def test_the_margin_of_a_standard_normal_is_the_mean_of_its_lower_half() -> None:
    found = margins(norm([1.0, -2.0], [0.0, 0.0]))
    assert found.tolist() == pytest.approx([HALF_NORMAL, 2 * HALF_NORMAL])
    assert found[0].item() == pytest.approx(-0.79788, abs=1e-5)


def test_a_margin_is_the_mean_of_what_is_drawn_below_zero() -> None:
    drawn = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.3
    assert margins(norm([0.5], [0.3])).item() == pytest.approx(drawn[drawn < 0].mean().item(), abs=0.005)


def test_where_next_to_nothing_is_below_zero_the_margin_is_three_deviations() -> None:
    assert margins(norm([0.5, 0.5], [5.0, 1.6])).tolist() == pytest.approx([-1.5, -1.5])


def test_a_channel_without_deviation_has_a_margin_too() -> None:
    assert margins(norm([0.0, 0.0, 0.0], [0.0, 1.0, -1.0])).tolist() == pytest.approx([0.0, 0.0, -1.0], abs=1e-9)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1.0, 3.0, 4.0),
        (5.0, 3.0, 4.0),
        (0.5, -0.5, 1.0),
        (-0.75, -0.5, 0.0),
        (0.5, -7.0, 2.25),
        (-0.5, -7.0, 0.25),
        (-2.0, -7.0, 0.0),
    ],
    ids=["on, below", "on, above", "near, above", "near, below", "off and on", "off, above", "off, below"],
)
def test_the_distance_by_hand_with_a_margin_of_minus_one(student: float, teacher: float, expected: float) -> None:
    assert float(margin_loss(maps(student), maps(teacher), torch.tensor([-1.0]))) == pytest.approx(expected)


def test_each_channel_has_its_own_margin_and_the_batch_is_averaged() -> None:
    student, teacher = maps(0.0, 0.0).repeat(2, 1, 1, 1), maps(-9.0, -9.0).repeat(2, 1, 1, 1)
    assert float(margin_loss(student, teacher, torch.tensor([-1.0, -2.0]))) == pytest.approx(5.0)


def test_plain_mse_charges_what_is_below_zero_too() -> None:
    distance = MapDistance(1, 1, norm([1.0], [0.0]), "plain_mse")
    distance.connector = nn.Sequential()
    assert float(distance(maps(-2.0), maps(-7.0))) == pytest.approx(25.0)


def test_a_connector_begins_with_the_deviation_that_its_outputs_call_for() -> None:
    convolution = connector(64, 128)[0]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is None
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)


def test_all_stages_have_a_connector_and_a_margin_each() -> None:
    last, every = margin_kd(), margin_kd(stages="all")
    channels = [[d.margin.numel() for d in how.distances] for how in (last, every)]  # type: ignore[union-attr]
    assert channels == [[32], [8, 16, 32]]


def test_the_weight_multiplies_the_distance_alone() -> None:
    torch.manual_seed(3)
    one = margin_kd(weight=1e-3)
    torch.manual_seed(3)
    two = margin_kd(weight=2e-3)
    first, second = (how.losses(batch(0, 1, 2, 3)) for how in (one, two))
    assert float(second["feature"].detach()) == pytest.approx(2 * float(first["feature"].detach()))
    assert torch.equal(first["ce"], second["ce"])


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_a_network_without_stages_is_refused(part: str) -> None:
    without: dict[str, Any] = {part: Says([0.0] * 4)}
    nets = dataclasses.replace(networks(), **without)
    with pytest.raises(RecipeError, match=f"needs a {part} of stages"):
        margin_kd(nets)


@pytest.mark.parametrize("teacher", ["jointrd_resnet18_0.125_imagenet", "resnet18_cifar"])
def test_maps_of_other_sizes_are_refused(teacher: str) -> None:
    with pytest.raises(RecipeError, match="take a teacher that makes images smaller where the student does"):
        margin_kd(Networks(models.build("resnet8_0.25_a", 4), models.build(teacher, 4)))


def test_a_teacher_whose_stages_end_in_no_batch_norm_is_refused() -> None:
    nets = Networks(models.build("wrn_10_1_preact", 4), models.build("wrn_10_2_preact", 4))
    with pytest.raises(RecipeError, match="take a ResNet as the teacher"):
        margin_kd(nets)


@pytest.mark.parametrize("block", [nn.ReLU(), nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))])
def test_a_stage_without_a_batch_norm_of_its_width_has_no_margin(block: nn.Module) -> None:
    with pytest.raises(RecipeError, match="there is none of 3 channels"):
        last_norm("margin_kd", Stage(block), 3)


def test_a_projections_batch_norm_is_not_the_one() -> None:
    stage = BasicBlock(2, 4, 2, "B")
    assert last_norm("margin_kd", Stage(stage), 4) is stage.bn2


def test_kd_by_logits_is_the_method_kd_with_the_appendixs_numbers() -> None:
    kind, config = find({"name": "kd", "ts_loss": "kl", "tau": 0.9, "t": 4.0})
    nets = Networks(models.build("jointrd_plain_keepds18_0.125_cifar_dirac", 4), frozen("resnet8_0.5_a", 1))
    losses = kind(config, nets, training_set()).losses(batch(0, 1, 2, 3))
    assert set(losses) == {"ts", "ce"}
    assert all(torch.isfinite(loss) for loss in losses.values())
