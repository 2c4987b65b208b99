"""A reused teacher becomes one ONNX file like any other network, its projector folded, and gives torch's logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cascade import bundle
from cascade.replay import replay
from export.build import build, pixels_of
from export.pixel_input import without_pixels
from export.session import Session, sessions
from export.to_onnx import fold_batch_norm, to_onnx
from tests.tiny_run import train_tiny
from training import models
from training.data import load

pytestmark = pytest.mark.train

NAMES = [
    ("simkd(resnet8_0.25_a, resnet8_0.5_a)", 8),
    ("simkd(resnet8_0.25_a, resnet8_0.5_a; stages=1, projector=1x1-3x3dw-1x1)", 8),
    ("simkd(resnet8_0.25_a, resnet8_0.5_a; align=vectors)", 8),
    ("simkd(resnet8_0.25_a, resnet8_0.5_a, resnet8_0.25_a)", 8),
    ("simkd(resnet8_0.25_a, mobilenetv2_half)", 32),  # maps of 8 pooled to 2
    ("simkd(resnet8_0.25_a, mobilenetv2_cifar)", 32),  # 8 to 5
]


def alive(name: str, size: int) -> nn.Module:
    """Batch norms that have seen something."""
    torch.manual_seed(0)
    net = models.build(name, 4, size)
    with torch.no_grad():
        net(torch.randn(32, 3, size, size))
    return net.eval()


@pytest.mark.parametrize(("name", "size"), NAMES)
def test_the_exported_file_gives_torchs_logits_alone_and_in_company(name: str, size: int) -> None:
    net, x = alive(name, size), torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(x).numpy()
    session = Session(to_onnx(net, size), name)
    scale = np.abs(expected).max()
    assert scale > 0
    assert np.abs(session.run(x.numpy()) - expected).max() < 1e-4 * scale
    assert np.abs(session.in_batches(x.numpy(), 1) - expected).max() < 1e-4 * scale


@pytest.mark.parametrize(("name", "size"), NAMES)
def test_every_batch_norm_is_folded(name: str, size: int) -> None:
    folded = fold_batch_norm(alive(name, size))
    called = [folded.get_submodule(str(node.target)) for node in folded.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(module, nn.Conv2d) for module in called) > 7
    assert not any(isinstance(module, nn.BatchNorm2d) for module in called)


def test_a_run_of_simkd_is_exported_and_answers_as_torch_does(tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path / "run",
        student={"model": "resnet8_0.25_a", "method": {"name": "simkd"}},
        residual=None,
        schedule={"epochs": 1, "batch_size": 64, "lr": 0.1, "policy": "cosine"},
    )
    manifest = build(run, tmp_path / "bundle", quiet=True).manifest
    assert manifest.stages[0].network == "simkd(resnet8_0.25_a, resnet8_0.5_a)"
    read, data = bundle.read(tmp_path / "bundle"), load(run.recipe.data, quiet=True)
    images = pixels_of(data.test, data)
    answers = replay([session.in_batches(images, 50) for session in sessions(read.models)], 0.5, "summed")
    with torch.no_grad():
        expected = run.network("student")[1](torch.from_numpy(images)).numpy()
    assert answers.classes.tolist() == expected.argmax(1).tolist()
    assert len(without_pixels(onnx.load_from_string(read.models[0])).graph.input) == 1
