"""The seam to onnxruntime: what runs is what the manifest says, alone or in company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade.bundle import Bundle
from cascade.combine import first
from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.pixels import normalise
from server.runtime import Images, OnnxRuntime, batch_sizes
from tests.builders import onnx_model, random_inputs, tiny_bundle, tiny_manifest


def test_logits_of_a_batch_are_bit_for_bit_those_of_its_images_alone() -> None:
    runtime = OnnxRuntime(tiny_bundle())
    images = random_inputs(9)
    for stage in range(3):
        alone = np.concatenate([runtime.run(stage, images[row : row + 1]) for row in range(9)])
        assert np.array_equal(runtime.run(stage, images), alone)


def test_a_cpu_runs_images_together_once_the_warm_up_has_seen_that_it_changes_no_bit() -> None:
    runtime = OnnxRuntime(tiny_bundle())
    images = random_inputs(19)
    alone = runtime.run(1, images)
    costs = runtime.warm_up()
    assert (runtime._together, costs.sizes) == (8, (1,))
    assert np.array_equal(runtime.run(1, images), alone)


def test_a_cpu_runs_images_alone_where_company_changes_a_bit() -> None:
    class Sociable(OnnxRuntime):
        def _run_batch(self, stage: int, images: Images) -> Floats:
            logits = super()._run_batch(stage, images)
            return np.nextafter(logits, np.float32(9)) if len(images) > 5 else logits

    runtime = Sociable(tiny_bundle())
    runtime.warm_up()
    assert runtime._together == 1


def test_pixels_and_inputs_in_one_batch_get_the_logits_they_get_apart() -> None:
    runtime = OnnxRuntime(tiny_bundle())
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), np.uint8)
    inputs = normalise(pixels, runtime.manifest.preprocess)
    alone = runtime.run(0, inputs)
    runtime.warm_up()
    assert np.array_equal(runtime.run(0, [pixels[0], inputs[1]]), alone)
    assert np.array_equal(runtime.run(0, list(pixels)), alone)


def test_energies_of_a_batch_are_bit_for_bit_those_of_its_rows_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    together = first(logits)[1]
    assert together.tolist() == [first(logits[row : row + 1])[1][0] for row in range(64)]


def test_onnxruntime_computes_what_the_graph_says() -> None:
    model = onnx_model(seed=3, classes=2)
    runtime = OnnxRuntime(Bundle(tiny_manifest([model], classes=2), (model,)))
    zeros = np.zeros((1, 3, 8, 8), np.float32)
    random = np.random.default_rng(3)
    _, bias = random.normal(size=(6, 3, 3, 3)), random.normal(size=6) * 0.1
    weights, shift = random.normal(size=(6 * 64, 2)) * 0.6 / 8, random.normal(size=2) * 0.1
    wanted = np.repeat(bias.clip(0), 64) @ weights + shift
    assert runtime.run(0, zeros) == pytest.approx(wanted[np.newaxis], abs=1e-5)


def test_batches_are_padded_to_a_few_sizes_and_cut_again() -> None:
    runtime = OnnxRuntime(tiny_bundle(1))
    images = random_inputs(7)
    wanted = runtime.run(0, images)
    runtime._padded_sizes, runtime._together = batch_sizes(4), 4
    assert runtime.warm_up().sizes == (1, 2, 4)
    assert runtime.run(0, images).shape == wanted.shape
    assert runtime.run(0, images) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_batch_sizes_are_powers_of_two_and_the_largest(most: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(most) == sizes


GRAPHS = {
    "other size": onnx_model(size=9),
    "other classes": onnx_model(classes=5),
    "fixed batch": onnx_model(batch=1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(name: str) -> None:
    good = onnx_model()
    models = (good, GRAPHS[name])
    with pytest.raises(BundleError, match=r"stages\[1\]\.(input|output).*the graph has"):
        OnnxRuntime(Bundle(tiny_manifest(models), models))


def test_other_names_in_the_graph_are_refused() -> None:
    bundle = tiny_bundle(1)
    stage = bundle.manifest.stages[0]
    renamed = stage.model_copy(update={"input": stage.input.model_copy(update={"name": "picture"})})
    manifest = bundle.manifest.model_copy(update={"stages": (renamed,)})
    with pytest.raises(BundleError, match=r"stages\[0\].input: the manifest says picture"):
        OnnxRuntime(Bundle(manifest, bundle.models))


def test_weights_outside_the_verified_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_model(outside="v")
    (tmp_path / "v.bin").write_bytes(np.zeros((6 * 64, 4), "<f4").tobytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"stages\[0\].file: onnxruntime cannot load it"):
        OnnxRuntime(Bundle(tiny_manifest([model]), (model,)))


def test_bytes_that_are_no_graph_are_refused() -> None:
    models = (b"not onnx",)
    with pytest.raises(BundleError, match=r"stages\[0\].file: onnxruntime cannot load it"):
        OnnxRuntime(Bundle(tiny_manifest(models), models))
