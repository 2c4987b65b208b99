"""The one file in a browser's runtime: onnxruntime-web under node, as WebAssembly."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cascade import bundle
from cascade.pixels import normalise
from cascade.replay import Replay
from export.onefile import fused_bundle
from export.whole import Whole
from tests.builders import tiny_bundle

WEB = Path(__file__).parent / "web"
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.train,
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
    pytest.mark.skipif(
        not (WEB / "node_modules" / "onnxruntime-web").is_dir(), reason=f"needs npm install --prefix {WEB.name}"
    ),
]


def in_node(folder: Path, model: bytes, images: NDArray[np.float32] | NDArray[np.uint8], threshold: float) -> Replay:
    """What onnxruntime-web answers."""
    tensors = {"images": images, "threshold": np.array([[threshold]])}
    feeds = {
        name: {"type": array.dtype.name, "dims": array.shape, "data": array.ravel().tolist()}
        for name, array in tensors.items()
    }
    (folder / "cascade.onnx").write_bytes(model)
    (folder / "feeds.json").write_text(json.dumps(feeds))
    command = ["node", str(WEB / "run.mjs"), str(folder / "cascade.onnx"), str(folder / "feeds.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    found = {name: np.array(value["data"]).reshape(value["dims"]) for name, value in said.items()}
    assert {name: value["type"] for name, value in said.items()} == {
        "logits": "float32",
        "label": "int64",
        "exit_stage": "int32",
        "energy": "float64",
    }
    return Replay(found["logits"], found["label"], found["exit_stage"], found["energy"])


@pytest.mark.parametrize("pixels", [False, True])
def test_a_browsers_runtime_gives_the_same_exits_and_labels(tmp_path: Path, *, pixels: bool) -> None:
    made = fused_bundle(tiny_bundle(), pixels=pixels)
    assert made.fused is not None
    raw = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), np.uint8)
    images = raw.transpose(0, 2, 3, 1) if pixels else normalise(raw, made.manifest.preprocess)
    threshold = 0.9
    expected = Whole(made.fused).run(np.ascontiguousarray(images), threshold)
    found = in_node(tmp_path, made.fused, images, threshold)
    assert found.stages.tolist() == expected.stages.tolist()
    assert found.classes.tolist() == expected.classes.tolist()
    assert np.allclose(found.logits, expected.logits, rtol=0, atol=1e-4)
    assert np.allclose(found.energies, expected.energies, rtol=0, atol=1e-5)
    assert set(found.stages.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("pixels", [False, True])
def test_a_browsers_runtime_takes_a_quantised_cascade(tmp_path: Path, *, pixels: bool) -> None:
    read = bundle.read(ROOT / "bundles" / "cifar10-int8")
    made, rule = fused_bundle(read, pixels=pixels), read.manifest.preprocess
    assert made.fused is not None
    raw = np.random.default_rng(0).integers(0, 256, (4, 3, rule.size, rule.size), np.uint8)
    images = np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if pixels else normalise(raw, rule)
    expected = Whole(made.fused).run(images, read.manifest.exit.threshold)
    found = in_node(tmp_path, made.fused, images, read.manifest.exit.threshold)
    assert found.stages.tolist() == expected.stages.tolist()
    assert found.classes.tolist() == expected.classes.tolist()
    assert np.allclose(found.logits, expected.logits, rtol=0, atol=1e-4)
