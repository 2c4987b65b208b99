"""Counts: every published network has its published parameters and multiply-accumulates, and is listed with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import nn

from cascade.errors import RecipeError
from training import models
from training.__main__ import main
from training.models.count import macs, params
from training.models.shapes import without_numbers

pytestmark = pytest.mark.train

Row = tuple[str, int, int, int, int]

DEFINITIONS = Path(__file__).resolve().parents[3] / "shared" / "spec" / "architectures.json"
COMBINATIONS = [
    (["resnet20_a", "resnet14_a"], 10, 442228),
    (["resnet20_a", "resnet14_a"], 100, 453928),
    (["resnet20_a", "resnet20_a"], 10, 539444),
    (["resnet20_a", "resnet14_a", "resnet8_a"], 10, 517518),
    (["resnet20_a", "resnet14_a", "resnet14_a"], 100, 632284),
    (["resnet20_a", "resnet20_a", "resnet20_a"], 10, 809166),
]


def published() -> list[Row]:
    """Name, classes, pixels a side, parameters, multiply-accumulates."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        return [
            (row["name"], int(row["classes"]), int(row["size"]), int(row["params"]), int(row["macs"]))
            for row in csv.DictReader(file)
        ]


def shapes(name: str, classes: int, size: int = 32) -> nn.Module:
    return without_numbers(lambda: models.build(name, classes, size))


@pytest.mark.parametrize(("name", "classes", "size", "parameters", "cost"), published())
def test_a_published_network_has_its_published_counts(
    name: str, classes: int, size: int, parameters: int, cost: int
) -> None:
    net = shapes(name, classes, size)
    assert params(net) == parameters
    assert macs(net, size) == cost


def test_the_published_counts_are_those_of_the_definitions() -> None:
    if not DEFINITIONS.is_file():
        pytest.skip("the networks' definitions are not beside this checkout")
    assert published() == [
        (network["id"], count["num_classes"], count["input"][1], count["params"], count["macs"])
        for network in json.loads(DEFINITIONS.read_text())["networks"]
        for count in network["computed"]
    ]


def test_every_published_name_and_every_one_of_torchvision_is_in_use_and_none_twice() -> None:
    names = models.names()
    assert {row[0] for row in published()} <= set(names)
    assert {f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("names", "classes", "parameters"), COMBINATIONS)
def test_the_stages_of_a_published_cascade_add_up(names: list[str], classes: int, parameters: int) -> None:
    assert sum(params(shapes(name, classes)) for name in names) == parameters


def test_our_imagenet_networks_cost_what_torchvisions_do() -> None:
    ours, theirs = shapes("resnet50_imagenet", 1000, 224), shapes("torchvision:resnet50", 1000, 224)
    assert params(ours) == params(theirs)
    assert macs(ours, 224) == macs(theirs, 224)


def test_a_grouped_convolution_costs_its_groups() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), nn.Flatten(), nn.Linear(6 * 16, 5))
    assert macs(net, 4) == 4 * 4 * 6 * 9 + 6 * 16 * 5


def test_attention_costs_its_projections_and_its_products() -> None:
    class Attends(nn.Module):
        """Four tokens of three numbers, which look at each other."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = images.flatten(2).transpose(1, 2)
            mixed: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return mixed

    for net in (Attends(), Attends().requires_grad_(requires_grad=False)):
        assert macs(net, 2) == 4 * 3 * 3 * 4 + 2 * 4 * 4 * 3


def test_counting_leaves_no_trace() -> None:
    net = models.build("resnet8_0.25_a", 10).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    macs(net, 32)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_that_cannot_take_the_images_is_not_counted() -> None:
    net = shapes("vgg8", 10).train()
    with pytest.raises(RecipeError, match="cannot take images of 2 pixels"):
        macs(net, 2)
    assert net.training


def listed(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["models", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_networks_are_listed_with_their_family_and_cost() -> None:
    rows = [line.split() for line in listed("resnet20*", "--classes", "10").splitlines()]
    assert ["resnet20_a", "resnet", "0.270", "M", "40.551", "M"] in rows
    assert {row[0] for row in rows} == {"resnet20_a", "resnet20_b", "resnet20_0.75_a"}


def test_the_list_is_json_where_asked() -> None:
    (found,) = json.loads(listed("resnet18_imagenet", "--classes", "1000", "--size", "224", "--json"))
    assert found == {
        "name": "resnet18_imagenet",
        "family": "resnet_imagenet",
        "params": 11689512,
        "macs": 1814073344,
    }


def test_a_size_that_a_network_cannot_take_leaves_a_dash() -> None:
    taken, refused = listed("vgg1[36]*", "--size", "16").splitlines()
    assert taken.split() == ["vgg13", "vgg", "9.462", "M", "71.272", "M"]
    assert refused.split() == ["vgg16_tiny", "vgg", "-", "-"]
    assert listed("torchvision:alexnet", "--size", "32").split()[-3:] == ["57.414", "M", "-"]


def test_a_pattern_that_no_name_matches_says_so() -> None:
    result = CliRunner().invoke(main, ["models", "lenet*"])
    assert result.exit_code == 1
    assert "no network's name matches 'lenet*'" in result.stderr
