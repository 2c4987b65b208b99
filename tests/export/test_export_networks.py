"""Every network, of whatever family, becomes one ONNX file that gives its logits, for one sample or many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.session import Session
from export.to_onnx import to_onnx
from tests.training.families import KINDS, Kind, images, network
from training import models

pytestmark = pytest.mark.train

TOLERANCE = 1e-4
ALIKE = {"resnet8_0.25_a", "resnet14_0.25_b", "jointrd_plain_keepds18_cifar", "vgg19_st79_prd", "mobilenetv2_tiny"}
DISTINCT = [kind for kind in KINDS if kind.name not in ALIKE]  # the rest brings no other operation
OURS = [
    Kind(name, (), (0, 0), 0, size=64 if "imagenet" in name or "tiny" in name else 32)
    for name in models.names()
    if not name.startswith("torchvision:")
]


def check(kind: Kind) -> None:
    """Export, and compare with torch at batch 7, and the batch with its samples alone."""
    net, x = network(kind), images(kind, 7)
    with torch.no_grad():
        expected = net(x).numpy()
    scale = np.abs(expected).max()
    session = Session(to_onnx(net, kind.size), kind.name)
    found = session.run(x.numpy())
    assert found.shape == expected.shape
    assert scale > 0
    assert np.abs(found - expected).max() < TOLERANCE * scale
    assert np.abs(found - session.in_batches(x.numpy(), 1)).max() < TOLERANCE * scale


@pytest.mark.parametrize("kind", DISTINCT, ids=lambda kind: kind.name)
def test_a_network_of_each_kind_gives_torchs_logits_alone_and_in_company(kind: Kind) -> None:
    check(kind)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_every_published_network_gives_torchs_logits_alone_and_in_company(kind: Kind) -> None:
    network.cache_clear()  # not all at once
    check(kind)
