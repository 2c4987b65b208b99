"""Families: whatever they are made of, networks can be looked into, left, entered, and trained in the same way."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.training.families import CLASSES, KINDS, Kind, images, network
from training import models
from training.models import Network
from training.models.shapes import without_numbers

pytestmark = pytest.mark.train

WIDE = next(kind for kind in KINDS if kind.name.startswith("wrn"))
OURS = [kind for kind in KINDS if not kind.name.startswith("torchvision:")]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def mapped(maps: list[Tensor]) -> tuple[tuple[int, int], ...]:
    """Channels and pixels a side."""
    assert all(part.shape[2] == part.shape[3] for part in maps)
    return tuple((part.shape[1], part.shape[3]) for part in maps)


@every_kind
def test_features_are_the_stem_each_stage_and_what_the_classifier_reads(kind: Kind) -> None:
    net = network(kind)
    with torch.no_grad():
        features = net.features(images(kind))
    assert mapped(features.maps[:-1]) == kind.maps
    assert mapped([features.pre_pool]) == (kind.pre_pool,)
    assert net.pre_pool_channels == kind.pre_pool[0]
    assert features.maps[-1].shape == (3, kind.width)
    assert torch.equal(features.logits, net.classifier(features.maps[-1]))


@every_kind
def test_features_and_every_cut_give_the_networks_own_logits(kind: Kind) -> None:
    net, x = network(kind), images(kind)
    with torch.no_grad():
        logits, maps = net(x), net.features(x).maps
        assert logits.shape == (3, CLASSES)
        assert torch.equal(net.features(x, preact=True).logits, logits)
        assert torch.equal(net.classify(net.pre_pool(x)), logits)
        for stage in range(len(net.stages) + 1):
            front, back = net.cut(stage)
            assert torch.equal(front(x), maps[stage])
            assert torch.equal(back(front(x)), logits)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != WIDE], ids=lambda kind: kind.name)
def test_preactivations_are_the_maps_before_their_last_relu(kind: Kind) -> None:
    net, x = network(kind), images(kind)
    with torch.no_grad():
        before, after = net.features(x, preact=True).maps, net.features(x).maps
    for stage, (early, late) in enumerate(zip(before, after, strict=True)):
        if stage == 0 or stage == len(net.stages) + 1 or stage in kind.raw:
            assert torch.equal(early, late)
        else:
            assert (early < 0).any()
            assert torch.equal(torch.relu(early), late)


@every_kind
def test_in_eval_mode_a_sample_does_not_see_its_batch(kind: Kind) -> None:
    net, x = network(kind), images(kind)
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(together.abs().max()))


@every_kind
def test_every_parameter_gets_a_gradient(kind: Kind) -> None:
    net = copy.deepcopy(network(kind)).train()
    net.features(images(kind)).logits.square().sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None] == []
    assert all(torch.isfinite(weight.grad).all() for weight in net.parameters() if weight.grad is not None)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_convolutions_start_from_kaiming_normal_weights_and_no_bias(kind: Kind) -> None:
    convolutions = [module for module in network(kind).modules() if isinstance(module, nn.Conv2d)]
    largest = max(convolutions, key=lambda module: module.weight.numel())
    fan_out = largest.weight.shape[0] * largest.weight[0, 0].numel()
    assert largest.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert all(not module.bias.any() for module in convolutions if module.bias is not None)


def test_a_wide_resnets_preactivations_have_been_through_the_next_batch_norm() -> None:
    net = network(WIDE)
    with torch.no_grad():
        before, after = net.features(images(WIDE), preact=True).maps, net.features(images(WIDE)).maps
        norms = [net.stages[1].blocks[0].bn1, net.stages[2].blocks[0].bn1, net.head[0]]  # type: ignore[index, union-attr]
        for early, late, norm in zip(before[1:-1], after[1:-1], norms, strict=True):
            torch.testing.assert_close(early, norm(late))


def test_looking_at_a_wide_resnets_preactivations_counts_no_batch_twice() -> None:
    once, twice = (copy.deepcopy(network(WIDE)).train() for _ in range(2))
    once(images(WIDE))
    twice.features(images(WIDE), preact=True)
    assert all(torch.equal(a, b) for a, b in zip(once.buffers(), twice.buffers(), strict=True))


def test_a_plain_network_has_no_shortcuts_but_those_that_change_the_shape() -> None:
    def kept(name: str) -> list[list[bool]]:
        net = without_numbers(lambda: models.build(name, 10))
        assert isinstance(net, Network)
        return [[block.block.shortcut is not None for block in stage.blocks] for stage in net.stages]  # type: ignore[union-attr]

    projections = [True, False, False]
    assert kept("jointrd_plain_keepds34_cifar") == [
        *([False] * 3, [*projections, False], [*projections, *[False] * 3], projections)
    ]
    assert not any(map(any, kept("jointrd_plain_none50_cifar")))
    assert all(map(all, kept("jointrd_resnet50_cifar")))


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet50_cifar", "resnet18_imagenet", "resnet50_imagenet"])
def test_a_plain_network_with_all_its_shortcuts_is_the_resnet(name: str) -> None:
    relu_first = models.build(f"jointrd_{name}", CLASSES, 32).eval()
    usual = without_numbers(lambda: models.build(name, CLASSES, 32)).eval()
    for module in relu_first.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
    weights = {key.replace(".block.", "."): value for key, value in relu_first.state_dict().items()}
    usual.load_state_dict(weights, assign=True)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(relu_first(x), usual(x))


@pytest.mark.parametrize("name", ["wrn_15_2_preact", "wrn_4_1_preact", "wrn_16_0_preact"])
def test_a_wide_resnet_has_whole_blocks_and_some_width(name: str) -> None:
    with pytest.raises(RecipeError, match="6n \\+ 4"):
        models.build(name, 10)


def test_hidden_layers_fit_the_size_and_refuse_a_small_one() -> None:
    net = without_numbers(lambda: models.build("vgg16_tiny", 200, 64))
    assert net(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 200)
    with pytest.raises(RecipeError, match="16 pixels is too small"):
        models.build("vgg16_tiny", 200, 16)


def test_vgg8_keeps_a_last_map_of_four_by_four_at_both_sizes() -> None:
    for size in (32, 64):
        net = without_numbers(functools.partial(models.build, "vgg8", 10, size))
        assert isinstance(net, Network)
        assert net.pre_pool(torch.zeros(1, 3, size, size, device="meta")).shape[2:] == (4, 4)
