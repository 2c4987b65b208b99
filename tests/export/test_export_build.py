"""A finished run becomes a bundle whose every number follows from the files in it."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade import bundle
from cascade.errors import BundleError, RecipeError
from cascade.figures import Sample, energy_threshold, measure, running_sums
from cascade.pixels import normalise, to_pixels
from export.build import Built, build, pixels_of
from export.session import Array, sessions
from export.to_onnx import OPSET
from export.verify import verify
from tests.tiny_run import train_tiny
from training.data import Data, Split, load
from training.evaluate import labels_of, logits_of
from training.models.count import macs, params
from training.run import Run, create
from training.settings import ExitConfig
from training.sources import digit_scans, split_by_class

pytestmark = pytest.mark.train


def data_of(run: Run) -> Data:
    return load(run.recipe.data, quiet=True)


def replayed(folder: Path, run: Run, split: Split) -> Sample:
    """The exported stages' logits, and the teacher's, on one split."""
    read, data = bundle.read(folder), data_of(run)
    images = pixels_of(split, data)
    teacher = run.network("teacher")[1]
    return Sample(
        "dv" if torch.equal(split.index, data.dv.index) else "test",
        labels_of(split),
        [session.in_batches(images, 50) for session in sessions(read.models)],
        read.manifest.costs(),
        teacher(torch.from_numpy(images)).detach().numpy(),
        macs(teacher, 8),
    )


def test_a_bundle_holds_the_runs_networks_in_order(tiny_run: Run, built: Built, folder: Path) -> None:
    manifest = bundle.read(folder).manifest
    assert manifest == built.manifest
    assert [stage.role for stage in manifest.stages] == ["student", "residual", "residual"]
    assert [stage.file for stage in manifest.stages] == ["stage0.onnx", "stage1.onnx", "stage2.onnx"]
    for stage, step in zip(manifest.stages, tiny_run.stages(), strict=True):
        name, net = tiny_run.network(step)
        assert (stage.network, stage.params, stage.macs) == (name, params(net), macs(net, 8))


def test_a_bundle_passes_its_own_verification(built: Built, folder: Path) -> None:
    assert verify(folder).manifest == built.manifest


def test_parity_was_checked_on_real_images(built: Built) -> None:
    assert built.parity.samples == 256
    assert 0 < built.parity.largest < 1e-4


def test_the_exported_networks_say_what_the_runs_networks_say(tiny_run: Run, built: Built, folder: Path) -> None:
    data = data_of(tiny_run)
    images = pixels_of(data.test, data)
    for session, step in zip(sessions(bundle.read(folder).models), tiny_run.stages(), strict=True):
        with torch.no_grad():
            expected = tiny_run.network(step)[1](torch.from_numpy(images)).numpy()
        assert np.abs(session.in_batches(images, 64) - expected).max() < 1e-4


def test_the_threshold_is_nine_tenths_of_the_exported_cascades_energy_on_dv(
    tiny_run: Run, built: Built, folder: Path
) -> None:
    data = data_of(tiny_run)
    total = running_sums(replayed(folder, tiny_run, data.dv).stage_logits)[-1]
    rule = built.manifest.exit
    assert rule.threshold == pytest.approx(energy_threshold(total, 0.9), rel=1e-6)
    assert rule.rule.fingerprint == data.dv.fingerprint()
    assert (rule.rule.samples, rule.rule.held_out) == (len(data.dv), True)


@pytest.mark.parametrize("name", ["dv", "test"])
def test_the_figures_are_those_of_the_exported_networks(tiny_run: Run, built: Built, folder: Path, name: str) -> None:
    data, manifest = data_of(tiny_run), built.manifest
    split, figures = (data.dv, manifest.calibration) if name == "dv" else (data.test, manifest.test)
    expected = measure(replayed(folder, tiny_run, split), manifest.exit.threshold, manifest.exit.definition)
    assert figures is not None
    assert figures.exits == pytest.approx(expected.exits)
    assert figures.adaptive == expected.adaptive
    assert [network.accuracy for network in figures.sums] == [network.accuracy for network in expected.sums]
    assert figures.teacher is not None
    assert expected.teacher is not None
    assert figures.teacher.accuracy == expected.teacher.accuracy


def test_some_samples_leave_at_every_stage(built: Built) -> None:
    assert built.manifest.test is not None
    assert min(built.manifest.test.exits) > 0.05


def test_a_scan_is_served_with_exactly_the_pixels_of_training(tiny_run: Run, built: Built) -> None:
    data, rule = data_of(tiny_run), built.manifest.preprocess
    scans, labels = digit_scans()
    _, test = split_by_class(labels, tiny_run.recipe.data.test_fraction, tiny_run.recipe.data.split_seed)
    served: Array = normalise(np.stack([to_pixels(scans[place], rule) for place in test]), rule)
    assert np.array_equal(served, pixels_of(data.test, data))
    assert rule.mean != rule.std


def test_mean_and_std_are_those_of_the_training_images(tiny_run: Run, built: Built) -> None:
    data, rule = data_of(tiny_run), built.manifest.preprocess
    part = data.train.images[data.train.index].numpy().reshape(-1, 3) / 255
    assert rule.mean == pytest.approx(part.mean(axis=0), abs=1e-6)
    assert rule.std == pytest.approx(part.std(axis=0), abs=1e-6)


def test_the_bundle_says_where_it_came_from(tiny_run: Run, built: Built) -> None:
    made = built.manifest.provenance
    assert (made.dataset, made.recipe, made.opset) == ("digits", tiny_run.recipe.run_id(), OPSET)
    assert made.versions["torch"] == importlib.metadata.version("torch")
    assert "python" in made.versions
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(made.created)
    assert datetime.timedelta(0) <= age < datetime.timedelta(hours=1)


def test_labels_are_the_names_of_the_classes(built: Built) -> None:
    assert built.manifest.labels == tuple("0123456789")


def test_name_version_and_exit_rule_are_chosen_by_whoever_exports(student_alone: Run, tmp_path: Path) -> None:
    rule = ExitConfig(threshold=0.4, definition="accumulated")
    run = replace(student_alone, recipe=student_alone.recipe.model_copy(update={"exit": rule}))
    manifest = build(run, tmp_path / "bundle", name="mine", version="2.1", quiet=True).manifest
    assert (manifest.name, manifest.version) == ("mine", "2.1")
    assert (manifest.exit.threshold, manifest.exit.definition) == (0.4, "accumulated")
    assert manifest.exit.rule.name == "fixed"


def test_a_student_without_teacher_is_a_bundle_of_one_stage(student_alone: Run, tmp_path: Path) -> None:
    manifest = build(student_alone, tmp_path / "bundle", quiet=True).manifest
    assert len(manifest.stages) == 1
    assert manifest.test is not None
    assert manifest.test.teacher is None
    assert manifest.test.exits == (1.0,)


def test_the_path_of_an_image_folder_stays_at_home(student_alone: Run, tmp_path: Path) -> None:
    from tests.training.folders import image_folder

    image_folder(tmp_path / "private" / "beasts", (30, 30, 30))
    run = train_tiny(
        tmp_path / "run",
        data={"name": f"imagefolder:{tmp_path / 'private' / 'beasts'}", "size": 8, "dv_fraction": 0.3},
        teacher=None,
        student={"model": "resnet8_0.125_a", "method": {"name": "vanilla"}},
        residual=None,
        schedule={"epochs": 1, "batch_size": 16, "policy": "cosine"},
    )
    manifest = build(run, tmp_path / "bundle", quiet=True).manifest
    assert manifest.provenance.dataset == "imagefolder:beasts"
    assert b"private" not in (tmp_path / "bundle" / "manifest.json").read_bytes()
    assert manifest.exit.rule.held_out is False


def test_an_older_bundle_is_replaced(student_alone: Run, built: Built, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bundle")
    build(student_alone, tmp_path / "bundle", quiet=True)
    names = sorted(path.name for path in (tmp_path / "bundle").iterdir())
    assert names == ["golden.npz", "manifest.json", "stage0.onnx"]


def test_a_folder_that_is_no_bundle_is_left_alone(student_alone: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle"):
        build(student_alone, tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_has_not_finished_cannot_be_exported(tiny_run: Run, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_run.recipe)
    with pytest.raises(RecipeError, match="has not finished"):
        build(run, tmp_path / "bundle", quiet=True)
    assert not (tmp_path / "bundle").exists()


def test_pixels_of_a_split_are_its_samples_in_order(tiny_run: Run) -> None:
    data = data_of(tiny_run)
    images = pixels_of(data.dv, data)
    assert images.shape == (len(data.dv), 3, 8, 8)
    raw = data.dv.images[data.dv.index].numpy().transpose(0, 3, 1, 2)
    assert np.array_equal(images, normalise(raw, data.preprocess))


def test_the_teachers_figures_are_those_of_torch(tiny_run: Run, built: Built) -> None:
    from training.data import Batches

    data = data_of(tiny_run)
    batches = Batches(data.preprocess, torch.device("cpu"))
    logits = logits_of([tiny_run.network("teacher")[1]], data.test, batches)[0]
    assert built.manifest.test is not None
    assert built.manifest.test.teacher is not None
    assert built.manifest.test.teacher.accuracy == (logits.argmax(1) == labels_of(data.test)).mean()
