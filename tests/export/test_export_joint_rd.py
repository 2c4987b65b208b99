"""A plain student that learned through a ResNet: trained, exported, and served answers as torch would give them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest

from cascade import bundle
from cascade.replay import replay
from export.build import build, pixels_of
from export.pixel_input import without_pixels
from export.session import sessions
from export.verify import verify
from tests.tiny_run import train_tiny
from training.data import Batches, load
from training.evaluate import logits_of
from training.models.count import params
from training.models.dirac import fold_dirac

pytestmark = [pytest.mark.train, pytest.mark.slow]

PLAIN = "jointrd_plain_none18_0.0625_cifar_dirac"
TEACHER = "jointrd_resnet18_0.125_cifar"


@pytest.mark.parametrize(
    "method",
    [{"name": "joint_rd"}, {"name": "joint_rd", "teacher_mode": "joint", "teacher_model": TEACHER}],
    ids=["frozen", "joint"],
)
def test_a_plain_cascade_is_trained_exported_and_replayed_as_torch_has_it(
    tmp_path: Path, method: dict[str, str]
) -> None:
    run = train_tiny(
        tmp_path / "run",
        schedule={"epochs": 1, "batch_size": 64, "lr": 0.05, "policy": "cosine"},
        teacher={"model": TEACHER, "method": {"name": "vanilla"}},
        student={"model": PLAIN, "method": method},
        residual={"models": [PLAIN], "stop": {"count": 1}},
    )
    built = build(run, tmp_path / "bundle", quiet=True)
    verify(tmp_path / "bundle")
    read = bundle.read(tmp_path / "bundle")
    for model in read.models:
        operations = {node.op_type for node in without_pixels(onnx.load_model(io.BytesIO(model))).graph.node}
        assert operations == {"Conv", "Relu", "ReduceMean", "Gemm"}
    nets = [run.network(step)[1] for step in run.stages()]
    assert [stage.params for stage in built.manifest.stages] == [params(fold_dirac(net)) for net in nets]
    data = load(run.recipe.data, quiet=True)
    rule = read.manifest.exit
    served = [session.in_batches(pixels_of(data.test, data), 100) for session in sessions(read.models)]
    torchs = logits_of(nets, data.test, Batches(data.preprocess, data.test.images.device))
    assert max(np.abs(one - other).max() for one, other in zip(served, torchs, strict=True)) < 1e-4
    one, other = (replay(logits, rule.threshold, rule.definition) for logits in (served, torchs))
    assert one.classes.tolist() == other.classes.tolist()
    assert one.stages.tolist() == other.stages.tolist()
