"""The seam to onnxruntime: what runs is what the manifest says, alone or in company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade.bundle import Bundle, read
from cascade.combine import first
from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.pixels import normalise
from server.runtime import Images, OnnxRuntime, batch_sizes
from tests.builders import ANY_SHIFT, onnx_model, random_inputs, random_pixels, tiny_bundle, tiny_manifest
from tests.serving import ROOT


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


def test_twice_as_many_images_run_together_where_maps_are_bytes() -> None:
    runtime = OnnxRuntime(read(ROOT / "bundles" / "cifar10-int8"))
    runtime.warm_up()
    pixels = random_pixels(19, 32)
    alone = np.concatenate([runtime._run_batch(0, pixels[row : row + 1]) for row in range(19)])
    assert runtime._together == 16
    assert np.array_equal(runtime.run(0, pixels), alone)


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


@pytest.fixture(scope="module")
def same() -> tuple[OnnxRuntime, OnnxRuntime]:
    """One cascade twice: its graphs take normalised floats, and pixels."""
    return OnnxRuntime(tiny_bundle()), OnnxRuntime(tiny_bundle(dtype="uint8"))


def test_a_graph_that_takes_pixels_gives_the_very_logits_of_one_that_takes_floats(
    same: tuple[OnnxRuntime, OnnxRuntime],
) -> None:
    pixels, (floats, takes_pixels) = random_pixels(9), same
    inputs = normalise(pixels, floats.manifest.preprocess)
    for stage in range(3):
        wanted = floats.run(stage, inputs)
        mixed = [image if row % 2 else inputs[row] for row, image in enumerate(pixels)]
        for images in (pixels, inputs, list(pixels), mixed):
            assert np.array_equal(takes_pixels.run(stage, images), wanted)


def test_the_warm_up_of_a_graph_that_takes_pixels_sees_that_company_changes_no_bit_of_either_kind(
    same: tuple[OnnxRuntime, OnnxRuntime],
) -> None:
    pixels, runtime = random_pixels(19), OnnxRuntime(tiny_bundle(dtype="uint8"))
    runtime.warm_up()
    assert runtime._together == 8
    assert np.array_equal(runtime.run(1, pixels), same[0].run(1, pixels))


def test_pixels_run_alone_where_the_graph_normalises_otherwise_than_the_manifest() -> None:
    bundle = tiny_bundle(dtype="uint8")
    brighter = bundle.manifest.preprocess.model_copy(update={"mean": (0.1, 0.2, 0.3)})
    runtime = OnnxRuntime(Bundle(bundle.manifest.model_copy(update={"preprocess": brighter}), bundle.models))
    runtime.warm_up()
    assert runtime._together == 1


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


PIXEL_GRAPHS = {
    "takes floats": (onnx_model(), r"input: the manifest says pixels uint8 .* the graph has image tensor\(float\)"),
    "no shift of that name": (onnx_model(shift=ANY_SHIFT).replace(b"shift", b"other"), r"input.shift: .* has none"),
    "a shift for pixels alone": (onnx_model(shift=(1, 3, 1, 1)), r"input.shift: .* has shift tensor\(float\)"),
}


@pytest.mark.parametrize("name", PIXEL_GRAPHS)
def test_a_graph_that_does_not_take_pixels_as_the_manifest_says_is_refused(name: str) -> None:
    model, message = PIXEL_GRAPHS[name]
    with pytest.raises(BundleError, match=r"stages\[0\]\." + message):
        OnnxRuntime(Bundle(tiny_manifest([model], dtype="uint8"), (model,)))


def test_a_graph_that_takes_pixels_unlike_the_manifest_says_is_refused() -> None:
    model = onnx_model(shift=ANY_SHIFT)
    with pytest.raises(BundleError, match=r"stages\[0\].input: the manifest says image float32"):
        OnnxRuntime(Bundle(tiny_manifest([model]), (model,)))


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
