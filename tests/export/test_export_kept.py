"""What is exported has every parameter of the network but those that were folded, and no product more or less."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from cascade import bundle
from cascade.errors import BundleError
from export.build import build
from export.count import Count, count
from export.kept import check
from export.to_onnx import to_onnx
from tests.tiny_run import train_tiny
from training import models
from training.models.count import macs, params

pytestmark = pytest.mark.train


class Small(nn.Module):
    """Convolutions with and without a bias before their batch norms, one batch norm that follows none, and spares."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 5, 3, bias=True), nn.BatchNorm2d(5), nn.ReLU())
        self.last = nn.Linear(5, 2)
        self.spare = nn.Linear(100, 100)
        for norm in (self.first[1], self.first[3], self.second[1]):
            nn.init.normal_(norm.get_parameter("bias"))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> (B, 2)."""
        logits: Tensor = self.last(self.second(self.first(images)).mean((2, 3)))
        return logits


SMALL = Count(3 * 4 * 9 + 4 + 2 * 4 + 4 * 5 * 9 + 5 + 5 * 2 + 2, 6 * 6 * 4 * 27 + 4 * 4 * 5 * 36 + 10)


class Attending(Small):
    """With products of parameters, which are made before there is an image."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 7))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> (B, 2)."""
        return super().forward(images) + (self.table @ self.table.T).sum(0)


def test_a_graph_has_what_its_network_has_less_what_was_folded() -> None:
    net = Small().eval()
    found = count(to_onnx(net, 8))
    assert found == SMALL
    assert params(net) - found.params == 4 + 2 * 5 + 100 * 101
    check(net, 8, found, "stages[0]")


@pytest.mark.parametrize("name", ["wrn_10_1_preact", "resnet8x4", "jointrd_plain_none18_0.0625_cifar_dirac"])
def test_a_network_is_exported_with_all_that_it_has_but_biases_of_zeros(name: str) -> None:
    net = models.build(name, 4).eval()
    check(net, 32, count(to_onnx(net, 32)), "stages[0]")


@pytest.mark.parametrize(
    ("found", "field"),
    [
        (Count(SMALL.params - 1, SMALL.macs), "stages[1].graph_params"),
        (Count(SMALL.params + 1, SMALL.macs), "stages[1].graph_params"),
        (Count(SMALL.params, SMALL.macs - 1), "stages[1].macs"),
        (Count(SMALL.params, SMALL.macs + 1), "stages[1].macs"),
    ],
)
def test_a_graph_with_more_or_less_than_its_network_is_refused(found: Count, field: str) -> None:
    with pytest.raises(BundleError, match="the exported graph has") as caught:
        check(Small().eval(), 8, found, "stages[1]")
    assert caught.value.field == field


def test_a_network_that_computes_with_parameters_of_its_own_may_save_products_but_not_add_any() -> None:
    net = Attending().eval()
    found = count(to_onnx(net, 8))
    assert found.macs < macs(net, 8)
    check(net, 8, found, "stages[0]")
    with pytest.raises(BundleError, match="the exported graph has") as caught:
        check(net, 8, Count(found.params, macs(net, 8) + 1), "stages[0]")
    assert caught.value.field == "stages[0].macs"


def test_a_slimmed_network_is_exported_with_the_channels_that_were_left(tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path / "run",
        teacher=None,
        student={"model": "resnet8_0.5_a", "method": {"name": "slimming"}, "slim": {"rate": 0.5, "floor": 1}},
        residual=None,
        schedule={"epochs": 1, "batch_size": 256, "policy": "cosine"},
    )
    built = build(run, tmp_path / "bundle", quiet=True)
    net = run.network(run.stages()[0])[1]
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    whole = [module for module in models.build("resnet8_0.5_a", 10).modules() if isinstance(module, nn.Conv2d)]
    graph = onnx.load_model_from_string(bundle.read(tmp_path / "bundle").models[0]).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes = [weights[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert shapes == [tuple(module.weight.shape) for module in convolutions]
    assert sum(module.out_channels for module in convolutions) < sum(module.out_channels for module in whole)
    assert built.manifest.stages[0].graph_params == count(to_onnx(net, 8)).params < params(net)
