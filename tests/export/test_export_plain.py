"""Plain networks fold to the operations that every runtime has, whatever they were trained with."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.session import Session
from export.to_onnx import to_onnx
from training import models
from training.models.dirac import Dirac

pytestmark = pytest.mark.train

CHAIN = {"Conv", "Relu", "MaxPool", "ReduceMean", "Gemm"}


def trained(name: str) -> nn.Module:
    """A network with factors and batch norms far from those it began with."""
    torch.manual_seed(0)
    net = models.build(name, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | Dirac):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.2, 1.2)
    for _ in range(3):
        net(torch.randn(16, 3, 32, 32))
    return net.eval()


def operations(model: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_model(io.BytesIO(model)).graph.node}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jointrd_plain_none18_0.125_cifar_dirac", CHAIN - {"MaxPool"}),
        ("jointrd_plain_none50_0.125_imagenet_dirac", CHAIN),
        ("jointrd_plain_keepds18_0.125_imagenet_dirac", CHAIN | {"Add"}),
    ],
)
def test_a_dirac_network_becomes_plain_convolutions_with_torchs_logits(name: str, expected: set[str]) -> None:
    net = trained(name)
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        logits = net(torch.from_numpy(images)).numpy()
    model = to_onnx(net, 32)
    assert operations(model) == expected
    assert np.abs(Session(model, name).run(images) - logits).max() < 1e-4
    assert np.ptp(logits) > 0.01
