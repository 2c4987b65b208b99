"""Slimming: the smallest scales go, and the narrow network gives what the silenced one gave."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from cascade.errors import RecipeError
from tests.training.pruning_nets import marked, silence
from training import models
from training.checkpoint import load_network, save_network
from training.models.count import macs, params
from training.models.dirac import Dirac, fold_dirac
from training.pruning.channels import channels_of
from training.pruning.cut import cut, kept_of
from training.pruning.slimming import chosen, slim

pytestmark = pytest.mark.train

NETWORKS = [
    ("resnet8_0.25_a", 16),
    ("resnet14_0.25_b", 16),
    ("resnet50_st79_tiny_imagenetstem", 32),
    ("jointrd_plain_keepds18_cifar", 8),
    ("jointrd_plain_none18_cifar", 8),
    ("wrn_10_1_preact", 16),
    ("vgg8", 16),
    ("vgg16_tiny", 32),
    ("mobilenetv2_half", 16),
    ("shufflenetv2", 16),
    ("xception_cifar", 16),
    ("inceptionv3_cifar", 16),
    ("torchvision:resnet18", 32),
    ("torchvision:efficientnet_b0", 32),
]


def images(size: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_a_cut_network_gives_the_logits_of_the_silenced_one(name: str, size: int, *, shared: bool) -> None:
    net = marked(name, size)
    kept = chosen(net, channels_of(net, size), 0.4, floor=1, shared=shared)
    silence(net, kept)
    narrow = cut(copy.deepcopy(net), kept, size)
    with torch.no_grad():
        expected, given = net(images(size)), narrow(images(size))
    assert params(narrow) < params(net)
    assert macs(narrow, size) < macs(net, size)
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_cut_network_gives_features_and_can_be_cut_in_two() -> None:
    net = slim(marked("vgg8", 16), 0.5, 16)
    assert isinstance(net, models.Network)
    features = net.features(images(16))
    front, back = net.cut(1)
    assert features.pre_pool.shape[1] == net.pre_pool_channels == net.classifier.in_features < 512
    assert torch.allclose(back(front(images(16))), features.logits, atol=1e-6)


def test_a_cut_network_trains() -> None:
    net = slim(marked("resnet8_0.25_a", 8), 0.5, 8, floor=1, shared=True).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in net.parameters()]
    nn.functional.cross_entropy(net(images(8, 4)), torch.arange(4)).backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_what_was_kept_makes_the_same_network_from_its_name() -> None:
    net = slim(marked("mobilenetv2_half", 16), 0.3, 16)
    kept = kept_of(net)
    assert kept is not None
    again = cut(models.build("mobilenetv2_half", 5, 16), kept, 16).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images(16)), net(images(16)))


def test_one_threshold_holds_for_the_whole_network() -> None:
    net = marked("vgg8", 16)
    kept = chosen(net, channels_of(net, 16), 0.3, floor=1, shared=False)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    places = {name: kept.get(name, list(range(norm.num_features))) for name, norm in norms.items()}
    stay = torch.cat([norm.weight[places[name]] for name, norm in norms.items()])
    every = torch.cat([norm.weight for norm in norms.values()])
    assert len(stay) == len(every) - round(0.3 * len(every))
    assert torch.equal(stay.sort().values, every.sort().values[-len(stay) :])


def test_every_norm_keeps_the_floor_or_all_that_it_has() -> None:
    net = slim(marked("resnet8_0.25_b", 16), 0.95, 16, floor=5)
    kept = kept_of(net)
    assert kept is not None
    assert all(len(places) == 5 for places in kept.values())
    widths = [module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert min(widths) == 4  # the first stage never had more


def test_channels_that_are_added_to_a_shortcut_stay_unless_they_share_a_mask() -> None:
    alone, together = (kept_of(slim(marked("resnet14_0.25_b", 16), 0.5, 16, floor=1, shared=s)) for s in (False, True))
    assert alone is not None
    assert together is not None
    assert all(name.endswith("bn1") for name in alone)
    shared = "stages.1.blocks.0.bn2", "stages.1.blocks.0.shortcut.1", "stages.1.blocks.1.bn2"
    first, *others = (together[name] for name in shared)
    assert others == [first, first]


def test_the_projection_of_a_plain_block_holds_back_the_norm_that_it_is_added_to() -> None:
    kept = kept_of(slim(marked("jointrd_plain_keepds18_cifar", 8), 0.5, 8))
    assert kept is not None
    assert "stages.1.blocks.0.block.bn2" not in kept
    assert {"stages.1.blocks.0.block.bn1", "stages.1.blocks.1.block.bn2"} <= set(kept)


def test_a_network_without_a_channel_that_can_go_is_refused() -> None:
    with pytest.raises(RecipeError, match="no channel of this network that can go") as refused:
        slim(models.build("shufflenetv1", 5, 16), 0.3, 16)
    assert "shuffled" in str(refused.value)
    assert "Dirac" not in str(refused.value)  # those are folded before


@pytest.mark.parametrize("name", [f"jointrd_plain_{kind}18_0.25_cifar_dirac" for kind in ("keepds", "none")])
def test_a_dirac_network_is_folded_and_then_cut(name: str) -> None:
    net = marked(name, 8)
    folded = fold_dirac(net)
    silence(folded, chosen(folded, channels_of(folded, 8), 0.4, floor=2, shared=False))
    with torch.no_grad():
        expected, given = folded(images(8)), slim(net, 0.4, 8, floor=2)(images(8))
    assert params(net) < params(folded)
    assert not any(isinstance(module, Dirac) for module in net.modules())
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_dirac_network_that_was_cut_comes_back_from_its_file(tmp_path: Path) -> None:
    name = "jointrd_plain_keepds18_0.25_cifar_dirac"
    net = slim(marked(name, 8), 0.4, 8, floor=2)
    save_network(tmp_path / "network.safetensors", net, name, 5, 8)
    again = load_network(tmp_path / "network.safetensors")[1]
    assert torch.equal(again(images(8)), net(images(8)))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"stages.0.blocks.0.bn9": [0]}, "no such batch norm or channel"),
        ({"stages.0.blocks.0.bn1": [99]}, "no such batch norm or channel"),
        ({"stages.1.blocks.0.bn2": [0, 1, 2]}, "do not fit the network"),
    ],
)
def test_channels_that_are_not_the_networks_are_refused(kept: dict[str, list[int]], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        cut(models.build("resnet8_0.25_a", 5, 16), kept, 16)


def test_weights_that_are_used_twice_stay_whole() -> None:
    class Twice(nn.Module):
        """One convolution and one norm, run twice."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
            self.norm, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            once = torch.relu(self.norm(self.first(x)))
            twice: torch.Tensor = self.last(self.again(self.norm(self.first(once)))).mean((2, 3))
            return twice

    channels = channels_of(Twice(), 8)
    assert not any(channels.outputs[name].any() for name in channels.norms)
