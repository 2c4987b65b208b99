"""Networks: their names, and what they offer whatever their family."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from training import models
from training.models.contract import Network
from training.models.resnet import BasicBlock, SubsampleAndPad, cifar_resnet

pytestmark = pytest.mark.train


def without_memory(name: str, classes: int) -> nn.Module:
    """A network that has shapes and no numbers."""
    with torch.device("meta"):
        return models.build(name, classes)


def small(name: str = "resnet8_0.25_a", classes: int = 10) -> Network:
    """A network whose batch norms are not the identity, in eval mode."""
    torch.manual_seed(0)
    net = models.build(name, classes)
    assert isinstance(net, Network)
    net(torch.randn(64, 3, 32, 32))
    return net.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "stem", "widths", "blocks"),
    [
        ("resnet8_a", 16, [16, 32, 64], 1),
        ("resnet20_0.75_a", 12, [12, 24, 48], 3),
        ("resnet8_0.25_b", 4, [4, 8, 16], 1),
        ("resnet116", 16, [16, 32, 64], 19),
        ("resnet8x2", 16, [32, 64, 128], 1),
        ("resnet8x4", 32, [64, 128, 256], 1),
        ("wrn16_2_simkd", 16, [32, 64, 128], 2),
        ("wrn40_4_simkd", 32, [64, 128, 256], 6),
    ],
)
def test_a_name_says_depth_and_widths(name: str, stem: int, widths: list[int], blocks: int) -> None:
    net = without_memory(name, 10)
    assert isinstance(net, Network)
    features = net.features(torch.zeros(1, 3, 32, 32, device="meta"))
    assert [part.shape[1] for part in features.maps] == [stem, *widths, widths[-1]]
    assert sum(isinstance(module, BasicBlock) for module in net.modules()) == 3 * blocks


@pytest.mark.parametrize(
    "name",
    [
        "",
        "resnet",
        "resnet9_a",
        "resnet2_a",
        "resnet20_c",
        "resnet20_a ",
        "Resnet20_a",
        "resnet20_a/../x",
        "wrn17_2_simkd",
        "torchvision:",
        "torchvision:nothing",
        "torchvision:resnet18; import os",
    ],
)
def test_a_name_that_no_family_knows_is_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        models.build(name, 10)


def test_the_error_for_an_unknown_name_shows_names_that_exist() -> None:
    with pytest.raises(RecipeError, match=r"'lenet'; names look like .*resnet20_a"):
        models.build("lenet", 10)
    with pytest.raises(RecipeError, match=r"'mobilenetv2'; did you mean mobilenetv2_"):
        models.build("mobilenetv2", 10)


@pytest.mark.parametrize("name", models.examples())
def test_every_example_name_gives_logits_and_takes_any_number_of_classes(name: str) -> None:
    net = without_memory(name, 7).eval()
    assert net(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)


def test_the_halves_of_a_cut_share_the_networks_weights() -> None:
    net = small()
    front, back = net.cut(2)
    back(front(images())).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("stage", [-1, 4])
def test_a_cut_after_a_stage_that_is_not_there_is_refused(stage: int) -> None:
    with pytest.raises(RecipeError, match="stages 0 to 3"):
        small().cut(stage)


def test_shortcut_a_takes_every_second_pixel_and_pads_half_before_and_half_after() -> None:
    x = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    y = SubsampleAndPad(2, 8, 2)(x)
    assert y.shape == (1, 8, 2, 2)
    assert torch.equal(y[:, 3:5], x[:, :, ::2, ::2])
    assert not y[:, :3].any()
    assert not y[:, 5:].any()


def test_shortcut_a_puts_the_odd_channel_after() -> None:
    y = SubsampleAndPad(2, 5, 1)(torch.ones(1, 2, 1, 1))
    assert y.ravel().tolist() == [0, 1, 1, 0, 0]


def test_shortcut_a_cannot_narrow() -> None:
    with pytest.raises(RecipeError, match="narrow"):
        cifar_resnet(8, 32, (16, 32, 64), "A", 10)
    assert cifar_resnet(8, 32, (16, 32, 64), "B", 10)(images()).shape == (4, 10)


def test_a_network_starts_from_kaiming_normal_weights_and_plain_batch_norm() -> None:
    torch.manual_seed(0)
    last = [module for module in models.build("resnet8_a", 10).modules() if isinstance(module, BasicBlock)][-1]
    assert last.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert (last.bn2.weight == 1).all()
    assert (last.bn2.bias == 0).all()


def test_the_same_seed_builds_the_same_weights() -> None:
    assert torch.equal(small().classifier.weight, small().classifier.weight)
