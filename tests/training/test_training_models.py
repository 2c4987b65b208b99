"""Networks: their counts, their shape, and what every family has to offer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from training import models
from training.models.contract import Network, pool
from training.models.count import macs, params
from training.models.resnet import BasicBlock, SubsampleAndPad, cifar_resnet

pytestmark = pytest.mark.train

# name, classes, parameters, multiply-accumulates of one 32 x 32 image
COUNTS = [
    ("resnet8_a", 10, 75290, 12239488),
    ("resnet8_a", 100, 81140, 12245248),
    ("resnet14_a", 10, 172506, 26395264),
    ("resnet14_a", 100, 178356, 26401024),
    ("resnet20_a", 10, 269722, 40551040),
    ("resnet20_a", 100, 275572, 40556800),
    ("resnet110_a", 10, 1727962, 252887680),
    ("resnet110_a", 100, 1733812, 252893440),
    ("resnet20_b", 10, 272474, 40813184),
    ("resnet20_b", 100, 278324, 40818944),
    ("resnet110_b", 10, 1730714, 253149824),
    ("resnet110_b", 100, 1736564, 253155584),
    ("resnet20_0.75_a", 100, 156592, 22897344),
    ("resnet116", 100, 1833780, 267311360),
    ("wrn40_1_simkd", 100, 569972, 83286272),
    ("wrn16_2_simkd", 100, 703732, 101118464),
    ("wrn40_2_simkd", 100, 2255604, 327610880),
    ("wrn16_4_simkd", 100, 2783620, 403563520),
    ("wrn40_4_simkd", 100, 8983940, 1309533184),
    ("resnet110x2", 100, 6911220, 1007088128),
    ("resnet8x4", 100, 1233540, 177071104),
    ("resnet32x4", 100, 7433860, 1083040768),
    ("resnet110x4", 100, 27584900, 4027442176),
]
COMBINATIONS = [
    (["resnet20_a", "resnet14_a"], 10, 442228),
    (["resnet20_a", "resnet14_a"], 100, 453928),
    (["resnet20_a", "resnet20_a"], 10, 539444),
    (["resnet20_a", "resnet14_a", "resnet8_a"], 10, 517518),
    (["resnet20_a", "resnet14_a", "resnet14_a"], 100, 632284),
    (["resnet20_a", "resnet20_a", "resnet20_a"], 10, 809166),
]
SHAPED = ["resnet8_0.25_a", "resnet14_0.25_b"]


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


@pytest.mark.parametrize(("name", "classes", "parameters", "cost"), COUNTS)
def test_a_published_network_has_its_published_counts(name: str, classes: int, parameters: int, cost: int) -> None:
    net = without_memory(name, classes)
    assert params(net) == parameters
    assert macs(net, 32) == cost


@pytest.mark.parametrize(("names", "classes", "parameters"), COMBINATIONS)
def test_the_stages_of_a_published_cascade_add_up(names: list[str], classes: int, parameters: int) -> None:
    assert sum(params(without_memory(name, classes)) for name in names) == parameters


def test_torchvisions_networks_are_counted_as_published() -> None:
    net = without_memory("torchvision:resnet18", 1000)
    assert params(net) == 11_689_512
    assert macs(net, 224) / 1e6 == pytest.approx(1814.07, abs=0.01)


def test_a_grouped_convolution_costs_its_groups() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), nn.Flatten(), nn.Linear(6 * 16, 5))
    assert macs(net, 4) == 4 * 4 * 6 * 9 + 6 * 16 * 5


def test_counting_leaves_no_trace() -> None:
    net = small().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    macs(net, 32)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


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


@pytest.mark.parametrize("name", models.names())
def test_every_example_name_gives_logits_and_takes_any_number_of_classes(name: str) -> None:
    net = without_memory(name, 7).eval()
    assert net(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", SHAPED)
def test_features_are_the_stem_each_stage_and_the_pooled_vector(name: str) -> None:
    features = small(name).features(images())
    assert [tuple(part.shape) for part in features.maps] == [
        (4, 4, 32, 32),
        (4, 4, 32, 32),
        (4, 8, 16, 16),
        (4, 16, 8, 8),
        (4, 16),
    ]


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("preact", [False, True])
def test_asking_for_features_does_not_change_the_logits(name: str, preact: bool) -> None:
    net = small(name)
    assert torch.equal(net.features(images(), preact=preact).logits, net(images()))


@pytest.mark.parametrize("name", SHAPED)
def test_preactivations_are_the_maps_before_their_last_relu(name: str) -> None:
    net = small(name)
    before, after = net.features(images(), preact=True).maps, net.features(images()).maps
    for early, late in zip(before[1:-1], after[1:-1], strict=True):
        assert (early < 0).any()
        assert torch.equal(torch.relu(early), late)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("stage", range(4))
def test_a_network_cut_anywhere_is_the_network(name: str, stage: int) -> None:
    net = small(name)
    front, back = net.cut(stage)
    assert torch.equal(back(front(images())), net(images()))


def test_the_front_of_a_cut_is_the_map_of_that_stage() -> None:
    net = small()
    maps = net.features(images()).maps
    for stage in range(4):
        assert torch.equal(net.cut(stage)[0](images()), maps[stage])


def test_the_halves_of_a_cut_share_the_networks_weights() -> None:
    net = small()
    front, back = net.cut(2)
    back(front(images())).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("stage", [-1, 4])
def test_a_cut_after_a_stage_that_is_not_there_is_refused(stage: int) -> None:
    with pytest.raises(RecipeError, match="stages 0 to 3"):
        small().cut(stage)


def test_the_classifier_reads_the_pooled_last_map() -> None:
    net = small()
    features = net.features(images())
    assert net.pre_pool_channels == features.maps[-2].shape[1] == net.classifier.in_features
    assert torch.equal(features.maps[-1], pool(features.maps[-2]))
    assert torch.equal(features.logits, net.classifier(features.maps[-1]))


@pytest.mark.parametrize("name", SHAPED)
def test_in_eval_mode_a_sample_does_not_see_its_batch(name: str) -> None:
    net = small(name)
    together = net(images(7))
    alone = torch.cat([net(image[None]) for image in images(7)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


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


class Attentive(nn.Module):
    """Pixels of an image attend to each other, by three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(2).transpose(1, 2)
        attended: Tensor = self.attention(pixels, pixels, pixels)[0]
        return attended.mean(1)


def test_attention_costs_its_four_projections() -> None:
    assert macs(Attentive(), 4) == 4 * 16 * 3 * 3
