"""A bundle in other precisions: its own threshold, its own figures, and nothing taken on trust."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import BundleError, RecipeError
from cascade.figures import Sample, energy_threshold, measure, running_sums
from cascade.files import Precision, Quantiser
from cascade.manifest import Manifest
from cascade.rules import ExitRule, ThresholdRule
from export.build import Built
from export.count import count
from export.derive import Derived, best_quantiser, derive, exit_rule, precisions_of, source_of
from export.onefile import fused_bundle
from export.session import sessions
from export.sources import opened
from export.splits import Splits, check, load
from export.verify import verify
from tests.builders import profile
from tests.training.folders import image_folder
from training.data import load as load_for_training
from training.evaluate import labels_of
from training.run import Run
from training.settings import Augment, DataConfig

pytestmark = pytest.mark.train

KINDS: tuple[Precision, ...] = ("int8", "fp32", "fp16")
OPTIONS = Quantiser(images=200)


@pytest.fixture(scope="module")
def source(built: Built, folder: Path) -> Bundle:
    return source_of(folder)


@pytest.fixture(scope="module")
def splits(tiny_run: Run) -> Splits:
    return load(tiny_run.recipe.data, 300, quiet=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a bundle in three precisions is; tests leave it as it is."""
    return tmp_path_factory.mktemp("derived") / "mixed"


@pytest.fixture(scope="module")
def derived(source: Bundle, splits: Splits, mixed: Path) -> Derived:
    return derive(source, mixed, splits, KINDS, quantiser=OPTIONS)


def dv_of(source: Bundle, splits: Splits) -> Sample:
    return splits.dv.sample(sessions(source.models, splits.dv.rule), source.manifest.costs())


def test_the_images_are_those_of_training(tiny_run: Run, splits: Splits) -> None:
    data = load_for_training(tiny_run.recipe.data, quiet=True)
    assert splits.fingerprint == data.dv.fingerprint()
    assert splits.dv.rule == data.preprocess
    assert splits.dv.labels.tolist() == labels_of(data.dv).tolist()
    assert splits.test.labels.tolist() == labels_of(data.test).tolist()


def test_the_images_of_a_training_with_resized_crops_are_those_that_it_is_judged_by(tmp_path: Path) -> None:
    config = DataConfig(
        name=f"imagefolder:{image_folder(tmp_path, side=31)}",
        size=16,
        resize="short_side",
        resize_to=21,
        augment=Augment(area=(0.08, 1)),
        dv_fraction=0.3,
    )
    data, splits = load_for_training(config, quiet=True), load(config, 5, quiet=True)
    assert data.train.pictures is not None
    assert splits.dv.rule == data.preprocess
    for ours, theirs in ((splits.dv, data.dv), (splits.test, data.test)):
        assert np.array_equal(ours.pixels, theirs.images[theirs.index].numpy().transpose(0, 3, 1, 2))


def test_what_calibrates_is_in_training_and_neither_in_dv_nor_in_test(tiny_run: Run, splits: Splits) -> None:
    data = load_for_training(tiny_run.recipe.data, quiet=True)
    pixels = data.train.images[data.train.index].numpy().transpose(0, 3, 1, 2)
    trained = {image.tobytes() for image in pixels}
    others = {image.tobytes() for part in (splits.dv, splits.test) for image in part.pixels}
    drawn = [image.tobytes() for image in splits.train.pixels]
    assert len(drawn) == 300
    assert set(drawn) <= trained
    assert not set(drawn) & (others - trained)


def test_profiles_of_other_networks_are_not_handed_on(source: Bundle, splits: Splits, tmp_path: Path) -> None:
    profiles = (profile("mine", (0.5,), len(source.models)),)
    made = replace(source, manifest=source.manifest.model_copy(update={"profiles": profiles}))
    assert derive(made, tmp_path / "b", splits, ("fp32",) * 3).manifest.profiles == ()


def test_each_stage_has_the_precision_that_was_asked_for(derived: Derived, mixed: Path) -> None:
    manifest = verify(mixed).manifest
    assert manifest == derived.manifest
    assert tuple(stage.precision for stage in manifest.stages) == KINDS
    assert manifest.provenance.quantiser == OPTIONS
    assert manifest.name == "tiny-int8-fp32-fp16"


def test_the_threshold_is_the_same_rule_on_the_derived_cascades_energies(
    source: Bundle, splits: Splits, derived: Derived, mixed: Path
) -> None:
    own = dv_of(bundle.read(mixed), splits)
    rule = derived.manifest.exit
    assert rule.threshold == energy_threshold(running_sums(own.stage_logits)[-1], 0.9)
    assert rule.threshold != source.manifest.exit.threshold
    assert rule.rule.fingerprint == source.manifest.exit.rule.fingerprint


@pytest.mark.parametrize("name", ["dv", "test"])
def test_the_figures_are_those_of_the_derived_files(
    source: Bundle, splits: Splits, derived: Derived, mixed: Path, name: str
) -> None:
    part, figures, before = (
        (splits.dv, derived.manifest.calibration, source.manifest.calibration)
        if name == "dv"
        else (splits.test, derived.manifest.test, source.manifest.test)
    )
    sample = part.sample(sessions(bundle.read(mixed).models, part.rule), derived.manifest.costs())
    expected = measure(sample, derived.manifest.exit.threshold, derived.manifest.exit.definition)
    assert figures is not None
    assert before is not None
    assert figures == expected.model_copy(update={"teacher": before.teacher})


def test_costs_are_what_the_derived_graphs_do(source: Bundle, derived: Derived, mixed: Path) -> None:
    read = bundle.read(mixed)
    assert read.manifest.costs() == [count(model).macs for model in read.models]
    assert read.manifest.costs()[0] > source.manifest.costs()[0]
    assert read.manifest.costs()[1:] == source.manifest.costs()[1:]


def test_most_classes_stay_what_they_were(derived: Derived) -> None:
    assert 0.9 < derived.same_classes <= 1


def test_a_bundle_in_float_keeps_its_name_its_threshold_and_its_figures(
    source: Bundle, splits: Splits, tmp_path: Path
) -> None:
    manifest = derive(source, tmp_path / "bundle", splits, ["fp32"] * 3).manifest
    assert manifest.name == "tiny"
    assert manifest.exit == source.manifest.exit
    assert manifest.calibration == source.manifest.calibration
    assert manifest.provenance.quantiser is None


def test_the_ranges_are_chosen_by_accuracy_on_dv(source: Bundle, splits: Splits) -> None:
    chosen = best_quantiser(source, splits, ["fp32", "fp32", "int8"], dv_of(source, splits))
    assert chosen.images == 300
    assert (chosen.weight_bits, chosen.in_float) == (7, ("classifier",))


def test_name_and_version_are_chosen_by_whoever_derives(source: Bundle, splits: Splits, tmp_path: Path) -> None:
    made = derive(source, tmp_path / "b", splits, ["fp16"] * 3, name="mine", version="2").manifest
    assert (made.name, made.version) == ("mine", "2")


def test_a_cascade_in_one_file_is_not_taken_over_since_it_is_of_the_old_networks(
    source: Bundle, splits: Splits, tmp_path: Path
) -> None:
    derive(fused_bundle(source), tmp_path / "bundle", splits, ["fp32"] * 3)
    assert bundle.read(tmp_path / "bundle").fused is None


def test_a_derived_bundle_is_no_source(derived: Derived, mixed: Path) -> None:
    with pytest.raises(BundleError, match="is int8 already"):
        source_of(mixed)


@pytest.mark.parametrize(
    "rule",
    [ThresholdRule(name="fixed"), ThresholdRule(name="energy_ratio", ratio=0.9, reference="T", energy=0.8)],
    ids=["fixed", "the teacher's"],
)
def test_a_threshold_that_does_not_follow_the_cascade_stays(
    source: Bundle, splits: Splits, rule: ThresholdRule
) -> None:
    given = ExitRule(threshold=0.5, rule=rule)
    assert exit_rule(given, dv_of(source, splits)) == given


@pytest.mark.parametrize(
    ("text", "expected"), [("int8", ("int8", "int8", "int8")), ("int8,fp32,fp16", ("int8", "fp32", "fp16"))]
)
def test_precisions_are_one_for_all_or_one_a_stage(text: str, expected: tuple[str, ...]) -> None:
    assert precisions_of(text, 3) == expected


@pytest.mark.parametrize("text", ["int4", "", "int8,fp32", "int8, fp32, fp32"])
def test_other_precisions_are_refused(text: str) -> None:
    with pytest.raises(BundleError, match="precision"):
        precisions_of(text, 3)


def changed(manifest: Manifest, what: str) -> Manifest:
    """The manifest as another bundle's would be."""
    assert manifest.calibration is not None
    first, *rest = manifest.calibration.sums
    sums = {
        "energy": (first.model_copy(update={"energy": 0.123}), *rest),
        "accuracy": (first.model_copy(update={"accuracy": 0.123}), *rest),
    }
    rule = manifest.exit.rule.model_copy(update={"fingerprint": "0" * 64})
    changes: dict[str, dict[str, Any]] = {
        "fingerprint": {"exit": manifest.exit.model_copy(update={"rule": rule})},
        "mean": {"preprocess": manifest.preprocess.model_copy(update={"mean": (0.1, 0.2, 0.3)})},
    }
    for name, each in sums.items():
        changes[name] = {"calibration": manifest.calibration.model_copy(update={"sums": each})}
    return manifest.model_copy(update=changes[what])


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("fingerprint", "exit.rule.fingerprint"),
        ("mean", "preprocess"),
        ("energy", "calibration.sums[0]"),
        ("accuracy", "calibration.sums[0]"),
    ],
)
def test_other_images_are_noticed(source: Bundle, splits: Splits, what: str, field: str) -> None:
    with pytest.raises(BundleError) as caught:
        check(splits, changed(source.manifest, what), dv_of(source, splits))
    assert caught.value.field == field


def test_a_bundle_that_says_nothing_of_its_images_is_taken_at_its_word(source: Bundle, splits: Splits) -> None:
    silent = source.manifest.model_copy(
        update={"calibration": None, "exit": ExitRule(threshold=0.5, rule=ThresholdRule(name="fixed"))}
    )
    check(splits, silent, dv_of(source, splits))


def test_other_pixels_with_the_same_labels_are_noticed(source: Bundle, splits: Splits) -> None:
    flipped = replace(splits, dv=replace(splits.dv, pixels=np.ascontiguousarray(splits.dv.pixels[..., ::-1])))
    with pytest.raises(BundleError, match="not the images it was made with"):
        check(flipped, source.manifest, dv_of(source, flipped))


def test_a_run_is_exported_and_brings_its_own_images(tiny_run: Run, source: Bundle) -> None:
    found = opened(tiny_run.folder, None, quiet=True)
    assert found.bundle.models == source.models
    assert found.splits.fingerprint == source.manifest.exit.rule.fingerprint


def test_a_bundle_needs_a_recipe_and_a_run_takes_none(tiny_run: Run, built: Built, folder: Path) -> None:
    with pytest.raises(RecipeError, match="--recipe"):
        opened(folder, None)
    with pytest.raises(RecipeError, match="leave out --recipe"):
        opened(tiny_run.folder, folder / "manifest.json")
