"""Dirac networks: how they begin, which convolutions are Dirac, what they fold to, what weight decay leaves alone."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from training import models
from training.loop import parameter_groups
from training.models.count import macs, params
from training.models.dirac import Dirac, DiracConv2d, fold_dirac, undecayed
from training.models.shapes import without_numbers
from training.settings import Schedule

pytestmark = pytest.mark.train

SMALL = "jointrd_plain_keepds18_0.125_cifar_dirac"
FACTORS = [(name, kind) for name in ("keepds", "none") for kind in ("cifar", "imagenet")]


def seen(name: str) -> nn.Module:
    """A network whose weights, factors and batch norms are not those it began with, in eval mode."""
    torch.manual_seed(0)
    net = models.build(name, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | Dirac):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return net.eval()


def images(count: int = 4, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def square(channels_in: int, channels_out: int, stride: int = 1) -> DiracConv2d:
    convolution = DiracConv2d(nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False))
    nn.init.zeros_(convolution.weight)
    return convolution


def dirac_places(name: str) -> set[str]:
    """The convolutions of a block that are Dirac ones, by their name within it."""
    net = without_numbers(lambda: models.build(name, 10))
    places = [key.partition(".block.")[2] for key, module in net.named_modules() if isinstance(module, DiracConv2d)]
    assert len(places) == sum(place != "" for place in places)
    return set(places)


def test_with_a_weight_of_zero_a_convolution_begins_as_the_identity() -> None:
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(square(4, 4)(x), x)


def test_a_strided_one_begins_as_every_second_pixel() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(square(4, 4, stride=2)(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize(("channels_in", "channels_out"), [(2, 5), (5, 2)])
def test_only_outputs_that_have_an_input_of_their_number_let_it_through(channels_in: int, channels_out: int) -> None:
    x = torch.randn(1, channels_in, 3, 3)
    y, shared = square(channels_in, channels_out)(x), min(channels_in, channels_out)
    assert torch.equal(y[:, :shared], x[:, :shared])
    assert not y[:, shared:].any()


def test_the_weight_that_is_used_by_hand() -> None:
    dirac = Dirac(2)
    dirac.alpha.data = torch.tensor([2.0, 3.0])
    dirac.beta.data = torch.tensor([10.0, 100.0])
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None]
    assert dirac(weight)[:, :, 0, 0].tolist() == [[12.0, 20.0], [300.0, 403.0]]


def test_at_first_alpha_is_one_and_beta_a_tenth() -> None:
    dirac = Dirac(3)
    assert dirac.alpha.tolist() == [1.0] * 3
    assert dirac.beta.tolist() == pytest.approx([0.1] * 3)


def test_the_learned_weight_begins_as_a_plain_networks() -> None:
    convolutions = [module for module in models.build(SMALL, 10).modules() if isinstance(module, DiracConv2d)]
    largest = max(convolutions, key=lambda module: module.weight.numel())
    assert largest.weight.std().item() == pytest.approx((2 / (9 * largest.out_channels)) ** 0.5, rel=0.05)


def test_under_a_cifar_stem_the_3x3_and_the_expanding_1x1_are_dirac() -> None:
    assert dirac_places("jointrd_plain_keepds18_cifar_dirac") == {"conv1", "conv2"}
    assert dirac_places("jointrd_plain_keepds50_cifar_dirac") == {"conv.0", "expand.0"}


def test_under_an_imagenet_stem_every_convolution_of_a_block_is() -> None:
    assert dirac_places("jointrd_plain_keepds18_imagenet_dirac") == {"conv1", "conv2", "shortcut.0"}
    assert dirac_places("jointrd_plain_keepds50_imagenet_dirac") == {"reduce.0", "conv.0", "expand.0", "shortcut.0"}


def test_a_teacher_is_never_dirac() -> None:
    with pytest.raises(RecipeError, match="no network is called"):
        models.build("jointrd_resnet18_cifar_dirac", 10)


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize(("shortcuts", "kind"), FACTORS)
def test_folded_it_has_the_parameters_and_cost_of_the_plain_network(depth: int, shortcuts: str, kind: str) -> None:
    name = f"jointrd_plain_{shortcuts}{depth}_{kind}"
    dirac, plain = (without_numbers(functools.partial(models.build, n, 100)) for n in (f"{name}_dirac", name))
    factors = [
        parameter for module in dirac.modules() if isinstance(module, Dirac) for parameter in module.parameters()
    ]
    outputs = sum(module.out_channels for module in dirac.modules() if isinstance(module, DiracConv2d))
    assert sum(parameter.numel() for parameter in factors) == 2 * outputs > 0
    assert params(dirac) - 2 * outputs == params(plain)
    assert macs(dirac, 32) == macs(plain, 32)


def test_folding_changes_the_logits_by_rounding_alone_and_leaves_the_network_as_it_was() -> None:
    net = seen(SMALL)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        expected, folded = net(images()), fold_dirac(net)
        torch.testing.assert_close(folded(images()), expected, rtol=0, atol=1e-4)
        assert torch.equal(net(images()), expected)
    assert not any(isinstance(module, DiracConv2d) for module in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    plain = models.build(SMALL.removesuffix("_dirac"), 10)
    plain.load_state_dict(folded.state_dict())


def test_a_widths_factor_multiplies_the_stem_and_every_stage() -> None:
    net = models.build("jointrd_plain_none50_0.25_cifar", 10)
    assert isinstance(net, models.Network)
    with torch.no_grad():
        assert [x.shape[1] for x in net.eval().features(images(1)).maps] == [16, 64, 128, 256, 512, 512]


def test_weight_decay_shrinks_neither_alpha_nor_beta() -> None:
    net = models.build(SMALL, 10)
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    schedule = Schedule(weight_decay=0.5)
    groups = parameter_groups(list(net.parameters()), schedule, undecayed(net))
    optimizer = torch.optim.SGD(groups, lr=1.0, weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in net.named_parameters():
        assert torch.equal(value, before[key] * (1.0 if key.endswith((".alpha", ".beta")) else 0.5))


def test_networks_without_dirac_keep_the_one_group_that_their_checkpoints_hold() -> None:
    net = models.build("jointrd_plain_none18_0.125_cifar", 10)
    assert len(parameter_groups(list(net.parameters()), Schedule(), undecayed(net))) == 1
