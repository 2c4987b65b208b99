"""Golden samples: packed, read with mistrust, chosen so that rounding cannot move them, and compared."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cascade.bundle import parse, sha256
from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.files import GoldenFile
from cascade.golden import Golden, check, choose, extremes_of, pack, unpack
from cascade.manifest import Manifest
from cascade.replay import replay
from tests.builders import tiny_manifest
from tests.cascade.documents import MODELS, put

SIZE, CLASSES, STAGES, TOLERANCE = 8, 4, 3, 0.01


def logits(count: int, scale: float = 2.0, seed: int = 0) -> Floats:
    """(STAGES, count, CLASSES) of random numbers."""
    return np.random.default_rng(seed).normal(size=(STAGES, count, CLASSES)).astype(np.float32) * np.float32(scale)


def samples(count: int = 5) -> Golden:
    table = logits(count)
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    return Golden(images, table, replay(list(table), 0.6).stages)


def manifest_for(data: bytes, count: int = 5, threshold: float = 0.6) -> Manifest:
    declared = GoldenFile(file="golden.npz", sha256=sha256(data), samples=count, tolerance=(TOLERANCE,) * STAGES)
    return tiny_manifest(MODELS, threshold=threshold).model_copy(update={"golden": declared})


MANIFEST = manifest_for(pack(samples()))


def test_what_is_packed_is_unpacked() -> None:
    found = unpack(pack(samples()), MANIFEST)
    assert np.array_equal(found.images, samples().images)
    assert np.array_equal(found.logits, samples().logits)
    assert np.array_equal(found.exits, samples().exits)


def test_the_same_samples_are_the_same_bytes() -> None:
    assert pack(samples()) == pack(samples())


def test_numpy_reads_the_file_without_pickle() -> None:
    with np.load(io.BytesIO(pack(samples())), allow_pickle=False) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            "images": (5, 8, 8, 3),
            "logits": (3, 5, 4),
            "exits": (5,),
        }


def test_extremes_are_packed_and_unpacked_where_there_are_any() -> None:
    extremes = extremes_of(MANIFEST.preprocess)
    found = unpack(pack(replace(samples(), extremes=extremes)), MANIFEST)
    assert found.extremes is not None
    assert np.array_equal(found.extremes, extremes)
    assert unpack(pack(samples()), MANIFEST).extremes is None


def test_extremes_are_the_darkest_and_the_brightest_byte_normalised() -> None:
    rule = MANIFEST.preprocess
    expected = [-np.array(rule.mean) / rule.std, (1 - np.array(rule.mean)) / rule.std]
    assert extremes_of(rule) == pytest.approx(np.array(expected), rel=1e-5)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_another_mean_or_std_than_the_extremes_had_is_refused(field: str) -> None:
    golden = replace(samples(), extremes=extremes_of(MANIFEST.preprocess))
    assert check(golden, list(golden.logits), MANIFEST) == (0.0,) * STAGES
    rule = MANIFEST.preprocess.model_copy(update={field: (0.5, 0.4, 0.301)})
    with pytest.raises(BundleError, match="mean or std was changed") as caught:
        check(golden, list(golden.logits), MANIFEST.model_copy(update={"preprocess": rule}))
    assert caught.value.field == "preprocess"


def test_pixels_are_planes() -> None:
    golden = samples()
    assert golden.pixels().shape == (5, 3, SIZE, SIZE)
    assert golden.pixels()[2, 1, 3, 4] == golden.images[2, 3, 4, 1]


def packed(**arrays: Any) -> bytes:
    out = io.BytesIO()
    golden = samples()
    given: dict[str, Any] = {"images": golden.images, "logits": golden.logits, "exits": golden.exits, **arrays}
    np.savez(out, **{name: array for name, array in given.items() if array is not None})
    return out.getvalue()


def claiming_more(shape: str = "(5, 8, 8, 3)") -> bytes:
    """A file whose header speaks of 10^12 images and holds none."""
    out = io.BytesIO()
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return out.getvalue()


def bomb() -> bytes:
    """A few kilobytes that unpack to ten megabytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(10_000_000))
    return out.getvalue()


def of_version_two() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array(file, samples().images, version=(2, 0))
    return out.getvalue()


BAD = {
    "nothing": (b"", "not a zip file"),
    "half of it": (pack(samples())[:900], "not a zip file"),
    "an array that is missing": (packed(exits=None), "exits.npy"),
    "another number of images": (packed(images=samples(4).images), r"\(4, 8, 8, 3\), not uint8 \(5, 8, 8, 3\)"),
    "images as floats": (packed(images=samples().images.astype(np.float32)), "images is float32"),
    "logits as integers": (packed(logits=samples().logits.astype(np.int32)), "logits is int32"),
    "arrays by columns": (packed(images=np.asfortranarray(samples().images)), "images is"),
    "objects": (packed(exits=np.array([{}] * 5)), "exits is object"),
    "a header that asks for terabytes": (claiming_more("(1000000000000, 8, 8, 3)"), "images is"),
    "a header without its data": (claiming_more(), "cannot reshape"),
    "a bomb": (bomb(), "is compressed"),
    "extremes of another shape": (packed(extremes=np.zeros((2, 1), np.float32)), "extremes is"),
    "no array": (packed(images=None), "images.npy"),
    "a format of tomorrow": (of_version_two(), "another version"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_golden_samples_is_refused(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(BundleError, match=message) as caught:
        unpack(data, MANIFEST)
    assert caught.value.field == "golden.file"


def test_a_bundle_without_golden_samples_cannot_be_compared() -> None:
    with pytest.raises(BundleError, match="carries no golden samples"):
        check(samples(), list(samples().logits), tiny_manifest(MODELS))


def test_the_differences_of_each_stage_are_told() -> None:
    golden = samples()
    found = check(golden, [golden.logits[0], golden.logits[1] + np.float32(0.005), golden.logits[2]], MANIFEST)
    assert found == pytest.approx((0, 0.005, 0), abs=1e-6)


@pytest.mark.parametrize("change", [0.02, np.nan])
def test_logits_beyond_the_tolerance_name_their_stage(change: float) -> None:
    found = [array.copy() for array in samples().logits]
    found[1][2, 3] += change
    with pytest.raises(BundleError, match="differ by") as caught:
        check(samples(), found, MANIFEST)
    assert caught.value.field == "stages[1]"


def test_logits_of_another_shape_name_their_stage() -> None:
    found = [samples().logits[0], samples().logits[1][:, :3], samples().logits[2]]
    with pytest.raises(BundleError, match="differ by inf"):
        check(samples(), found, MANIFEST)


def test_an_edited_threshold_is_noticed_where_it_passes_a_sample() -> None:
    edited = MANIFEST.model_copy(update={"exit": MANIFEST.exit.model_copy(update={"threshold": 0.99})})
    with pytest.raises(BundleError, match=r"threshold 0\.99") as caught:
        check(samples(), list(samples().logits), edited)
    assert caught.value.field == "exit.threshold"


def test_a_class_that_flips_within_the_tolerance_is_told() -> None:
    table = logits(5)
    table[:, 0] = 0
    table[0, 0, 1] = 0.001
    golden = replace(samples(), logits=table, exits=replay(list(table), 0.6).stages)
    found = table.copy()
    found[0, 0, 2] = 0.002
    with pytest.raises(BundleError, match="golden sample 0 has class 2 here and 1 in the bundle"):
        check(golden, list(found), MANIFEST)


def test_chosen_samples_leave_at_every_stage_and_lie_near_and_far() -> None:
    table = list(logits(400))
    rows = choose(table, MANIFEST, (TOLERANCE,) * STAGES, 12)
    result = replay([stage[rows] for stage in table], 0.6)
    assert np.bincount(result.stages).tolist() == [4, 4, 4]
    away = np.abs(result.energies - 0.6)[result.stages == 0]
    assert min(away) < 0.05
    assert max(away) > 0.35


def test_no_machine_within_the_tolerance_changes_what_chosen_samples_do() -> None:
    table, random = logits(400, seed=3), np.random.default_rng(1)
    rows = choose(list(table), MANIFEST, (TOLERANCE,) * STAGES, 12)
    wanted = replay(list(table[:, rows]), 0.6)
    for _ in range(200):
        error = random.choice([-TOLERANCE, TOLERANCE], size=table[:, rows].shape).astype(np.float32)
        found = replay(list(table[:, rows] + error), 0.6)
        assert np.array_equal(found.stages, wanted.stages)
        assert np.array_equal(found.classes, wanted.classes)


def test_where_no_sample_is_sure_the_surest_are_taken() -> None:
    rows = choose(list(logits(30)), MANIFEST, (5.0,) * STAGES, 6)
    assert len(rows) == 6


def test_one_stage_has_no_threshold_to_be_near() -> None:
    manifest = tiny_manifest(MODELS[:1])
    assert len(choose([logits(30)[0]], manifest, (TOLERANCE,), 12)) == 12


GOLDEN = {"file": "golden.npz", "sha256": "0" * 64, "samples": 5, "tolerance": [0.1, 0.1, 0.1]}
MISFITS = {
    "the file of a stage": ({**GOLDEN, "file": "stage1.onnx"}, "golden.file"),
    "a file outside": ({**GOLDEN, "file": "../golden.npz"}, "golden.file"),
    "a tolerance too few": ({**GOLDEN, "tolerance": [0.1]}, "golden.tolerance"),
    "a tolerance of nothing": ({**GOLDEN, "tolerance": [0.1, 0, 0.1]}, "golden.tolerance[1]"),
    "no samples": ({**GOLDEN, "samples": 0}, "golden.samples"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_golden_samples_that_do_not_fit_the_manifest_are_refused(name: str) -> None:
    value, field = MISFITS[name]
    with pytest.raises(BundleError) as caught:
        parse(put("golden", value))
    assert caught.value.field == field
