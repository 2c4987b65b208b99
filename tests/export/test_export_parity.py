"""Torch against onnxruntime: what is alike passes, and what is not is named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cascade.errors import BundleError
from cascade.exits import energy
from export.parity import TOLERANCE, check
from export.session import Array, Session, sessions
from export.to_onnx import to_onnx
from tests.training.networks import frozen
from training.models import Network

pytestmark = pytest.mark.train

NAMES = ["resnet8_0.125_a", "resnet8_0.25_a"]


@pytest.fixture(scope="module")
def nets() -> list[nn.Module]:
    return [frozen(name, seed) for seed, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def exported(nets: list[nn.Module]) -> list[Session]:
    return sessions([to_onnx(net, 8) for net in nets])


def images(count: int = 40) -> Array:
    return np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)


def moved(net: nn.Module, by: float) -> nn.Module:
    """The network with its first logit moved."""
    other = copy.deepcopy(net)
    assert isinstance(other, Network)
    with torch.no_grad():
        other.classifier.bias[0] += by
    return other


def logits_of(net: nn.Module) -> Array:
    with torch.no_grad():
        logits: Array = net(torch.from_numpy(images())).numpy()
    return logits


def test_an_exported_cascade_is_like_torchs(nets: list[nn.Module], exported: list[Session]) -> None:
    found = check(nets, exported, images(), 0.5, "summed")
    assert found.samples == 40
    assert 0 < found.largest < TOLERANCE


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("by", [1e-3, 10.0, float("nan")])
def test_a_network_that_was_tampered_with_is_named(
    nets: list[nn.Module], exported: list[Session], stage: int, by: float
) -> None:
    tampered = [moved(net, by) if number == stage else net for number, net in enumerate(nets)]
    with pytest.raises(BundleError, match="differ from torch's") as caught:
        check(tampered, exported, images(), 0.5, "summed")
    assert caught.value.field == f"stages[{stage}]"


def test_swapped_networks_are_noticed(nets: list[nn.Module], exported: list[Session]) -> None:
    with pytest.raises(BundleError, match="differ from torch's"):
        check(nets[::-1], exported, images(), 0.5, "summed")


def test_an_exit_that_flips_is_noticed_though_the_logits_are_close(
    nets: list[nn.Module], exported: list[Session]
) -> None:
    shifted = moved(nets[0], TOLERANCE / 2)
    here, there = energy(logits_of(nets[0])), energy(logits_of(shifted))
    sample = int(np.abs(here - there).argmax())
    threshold = float(here[sample] + there[sample]) / 2
    with pytest.raises(BundleError, match=rf"sample {sample} has exit stage .* in torch"):
        check([shifted, nets[1]], exported, images(), threshold, "summed")


def test_a_class_that_flips_is_noticed_though_the_logits_are_close(
    nets: list[nn.Module], exported: list[Session]
) -> None:
    logits = logits_of(nets[0])[3]
    tied = moved(nets[0], float(logits[1:].max() - logits[0]) + TOLERANCE / 4)  # class 0 wins sample 3, by a hair
    with pytest.raises(BundleError, match=r"sample \d+ has class 0 exported and"):
        check([moved(tied, -TOLERANCE / 2)], sessions([to_onnx(tied, 8)]), images(), 0.0, "summed")
