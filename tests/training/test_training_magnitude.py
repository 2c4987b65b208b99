"""Pruning by magnitude: one threshold for the whole network, a fifth a round, and nothing ever comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cascade.errors import RecipeError
from training import models
from training.pruning.magnitude import Masks, prunable, rounds_for

pytestmark = pytest.mark.train

SMALL = "vgg_8-8_16-16_prd"


def network(name: str = SMALL) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, 10, 16)


def after(net: nn.Module, rounds: int) -> Masks:
    masks = Masks.whole(net)
    for _ in range(rounds):
        masks = masks.smaller(net)
    return masks


def kept(masks: Masks) -> float:
    return sum(int(mask.sum()) for mask in masks.kept.values()) / sum(mask.numel() for mask in masks.kept.values())


@pytest.mark.parametrize(
    ("sparsity", "rounds"), [(0.36, 2), (0.59, 4), (0.79, 7), (0.8, 7), (0.6, 4), (0.2, 1), (0.01, 1)]
)
def test_the_number_of_rounds_is_the_one_that_comes_nearest(sparsity: float, rounds: int) -> None:
    assert rounds_for(sparsity) == rounds


def test_of_two_numbers_of_rounds_as_near_the_smaller_is_taken() -> None:
    assert rounds_for(0.625, share=0.5) == 1  # between 0.5 and 0.75


@pytest.mark.parametrize("rounds", [2, 4, 7])
def test_after_n_rounds_eight_tenths_to_the_n_are_left(rounds: int) -> None:
    net = network("vgg_64-64_128_prd")
    assert kept(after(net, rounds)) == pytest.approx(0.8**rounds, abs=1e-5)


def test_the_threshold_is_one_for_the_whole_network_among_what_is_left() -> None:
    net = network()
    before = after(net, 1)
    masks = before.smaller(net)
    weights = dict(prunable(net))
    gone = torch.cat([weights[name].abs()[before.kept[name] & ~mask] for name, mask in masks.kept.items()])
    left = torch.cat([weights[name].abs()[mask] for name, mask in masks.kept.items()])
    assert gone.max() <= left.min()
    assert len({round(count / total, 2) for count, total in masks.counts(net).values()}) > 1


def test_every_convolution_and_linear_layer_is_pruned_and_nothing_else() -> None:
    net = network("resnet18_8-8-8-8_cifar")
    names = [name for name, _ in prunable(net)]
    assert {"stem.0.weight", "stages.1.blocks.0.shortcut.0.weight", "classifier.weight"} <= set(names)
    assert all(net.get_parameter(name).ndim > 1 for name in names)


def test_pruned_weights_are_the_weights_there_were_times_the_masks() -> None:
    net = network()
    before = {name: weight.detach().clone() for name, weight in prunable(net)}
    masks = after(net, 3)
    masks.hold(net)
    assert all(torch.equal(weight, before[name] * masks.kept[name]) for name, weight in prunable(net))


def test_what_was_pruned_gets_no_gradient_and_stays_zero_under_momentum_and_decay() -> None:
    net = network()
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    nn.functional.cross_entropy(net(images), torch.arange(8)).backward()
    optimizer.step()  # momentum of what is pruned next
    masks = after(net, 4)
    masks.hold(net)
    optimizer.register_step_post_hook(lambda *_: masks.apply(net))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.arange(8)).backward()
        assert not any(
            weight.grad[~masks.kept[name]].any() for name, weight in prunable(net) if weight.grad is not None
        )
        optimizer.step()
    assert not any(weight[~masks.kept[name]].any() for name, weight in prunable(net))
    assert all(weight[masks.kept[name]].any() for name, weight in prunable(net))


def test_masks_only_shrink() -> None:
    net = network()
    first = after(net, 2)
    with torch.no_grad():
        for _, weight in prunable(net):
            weight.neg_().add_(0.5)
    second = first.smaller(net)
    assert all(bool((first.kept[name] | ~mask).all()) for name, mask in second.kept.items())


def test_masks_come_back_from_a_file(tmp_path: Path) -> None:
    net = network()
    masks = after(net, 2)
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert list(again.counts(net).items()) == list(masks.counts(net).items())
    assert all(torch.equal(again.kept[name], mask) for name, mask in masks.kept.items())


def test_a_file_without_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks.safetensors").write_bytes(b"no masks")
    for name in ("masks.safetensors", "missing"):
        with pytest.raises(RecipeError, match="cannot read the masks"):
            Masks.load(tmp_path / name)
