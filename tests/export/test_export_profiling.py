"""From held-out samples to profiles in a bundle and a page that shows them."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from cascade import bundle
from cascade.errors import RecipeError
from cascade.exits import Floats
from cascade.replay import replay
from cascade.rules import Profile
from export.__main__ import main
from export.build import Built
from export.heldout import HeldOut, find, from_logits
from export.latency import measure
from export.profiles import Timing, mean_cost, profile
from export.profiling import Wishes, calibrate
from export.rules import parse
from tests.tiny_run import document

pytestmark = pytest.mark.train

QUIET = Console(quiet=True)
COSTS = [100, 300]


def logits(samples: int = 3000, stages: int = 2, seed: int = 0) -> tuple[list[Floats], np.ndarray]:
    """Stages of four classes that mostly see the label, the more so where their logits are large."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, samples)
    strength = random.exponential(4, samples)[:, None]
    truth = np.eye(4)[labels] * strength
    return [(truth + random.normal(0, 1, (samples, 4))).astype(np.float32) for _ in range(stages)], labels


def held_out(samples: int = 3000, stages: int = 2) -> HeldOut:
    found, labels = logits(samples, stages)
    return HeldOut("made up", found, labels, None, "unknown", "it was made up")


def find_profile(rule: str, samples: HeldOut | None = None, **options: object) -> Profile:
    return profile(parse(rule), samples or held_out(), COSTS, "summed", **options)  # type: ignore[arg-type]


def test_a_certified_profile_says_what_replay_says_of_its_samples() -> None:
    samples = held_out()
    found = find_profile("accuracy(0.03, 0.1)", samples)
    assert found.certified
    assert (found.samples, found.searched, found.eps, found.delta) == (2700, 300, 0.03, 0.1)
    assert samples.labels is not None
    whole = replay(samples.stage_logits, found.threshold)
    assert found.accuracy is not None
    assert found.accuracy.low < whole.accuracy(samples.labels) < found.accuracy.high
    assert found.macs.low < whole.mean_cost(COSTS) < found.macs.high
    assert sum(each.value for each in found.exits) == pytest.approx(1)


def test_what_cannot_be_certified_is_the_full_cascade_and_says_so() -> None:
    found = find_profile("agreement(0.001, 0.1)", held_out(100))
    assert (found.certified, found.thresholds, found.agreement.value) == (False, (1.0,), 1.0)
    assert "nothing could be certified" in found.method


def test_samples_that_were_trained_on_certify_nothing() -> None:
    found = find_profile("accuracy(0.03, 0.1)", replace(held_out(), seen="yes"))
    assert not found.certified
    assert "void" in found.method


def test_a_threshold_a_stage_is_searched_on_one_half_and_certified_on_the_other() -> None:
    found = profile(parse("agreement(0.05, 0.1)"), held_out(4000, 3), [1, 1, 1], "summed", per_stage=True)
    assert found.certified
    assert (len(found.thresholds), found.samples, found.searched) == (2, 2000, 2000)


def test_the_papers_rule_is_a_share_of_the_mean_energy_and_promises_nothing() -> None:
    found = find_profile("paper(1)")
    assert not found.certified
    assert found.thresholds[0] == pytest.approx(0.9, abs=0.1)
    assert found.samples == 3000


def test_a_budget_is_spent_on_the_most_accurate_threshold_within_it() -> None:
    cheap, dear = (find_profile(f"cost({budget})") for budget in (160, 390))
    assert cheap.macs.value < 175 < dear.macs.low
    assert cheap.accuracy is not None
    assert dear.accuracy is not None
    assert cheap.accuracy.value < dear.accuracy.value


def test_a_budget_of_time_counts_measured_times() -> None:
    timing = Timing((1.0, 3.0), "a machine")
    found = find_profile("latency(1.6)", timing=timing)
    assert found.latency is not None
    assert found.latency.mean_ms < 1.75
    with pytest.raises(RecipeError, match="needs measured times"):
        find_profile("latency(1.6)")


def test_a_budget_below_the_first_stage_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the budget is 50, and the cheapest thresholds take 100"):
        find_profile("cost(50)")


def test_accuracy_needs_labels_and_agreement_does_not() -> None:
    nameless = replace(held_out(), labels=None)
    with pytest.raises(RecipeError, match="needs labels"):
        find_profile("accuracy(0.03, 0.1)", nameless)
    found = find_profile("agreement(0.05, 0.1)", nameless)
    assert found.certified
    assert found.accuracy is None


@pytest.mark.parametrize(("samples", "words"), [(held_out(5), "too few"), (held_out(100, 1), "one stage")])
def test_what_nothing_can_be_calibrated_on_is_refused(samples: HeldOut, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        find_profile("paper", samples)


def test_the_interval_of_a_mean_cost_follows_from_those_who_go_on() -> None:
    found = mean_cost(np.array([0] * 90 + [1] * 10), [100, 300])
    assert found.value == 130
    assert found.low == pytest.approx(100 + 300 * 0.0490, abs=0.1)
    assert found.high == pytest.approx(100 + 300 * 0.1762, abs=0.1)


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def own(folder: Path, built: Built, tmp_path: Path) -> Path:
    """A copy of the exported bundle, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "bundle"))


def test_logits_are_read_from_a_file(own: Path, tmp_path: Path) -> None:
    manifest = bundle.read_manifest(own)
    rows = np.zeros((30, len(manifest.labels)), np.float32)
    stages = {f"stage{number}": rows for number in range(len(manifest.stages))}
    found = from_logits(write_npz(tmp_path / "l.npz", labels=np.zeros(30, np.int64), **stages), manifest)
    assert (len(found), found.seen) == (30, "unknown")
    for wrong, words in (
        ({"stage0": rows}, "has no stage1"),
        ({**stages, "stage1": rows[:3]}, "must be floats of shape"),
        ({**stages, "labels": np.zeros(3, np.int64)}, "labels must be whole numbers of shape"),
        ({**stages, "labels": np.full(30, 99)}, "labels must lie between 0 and"),
    ):
        with pytest.raises(RecipeError, match=words):
            from_logits(write_npz(tmp_path / "wrong.npz", **wrong), manifest)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(RecipeError, match="cannot read logits"):
        from_logits(tmp_path / "text.npz", manifest)


def class_folders(root: Path, labels: tuple[str, ...], each: int = 3) -> Path:
    random = np.random.default_rng(0)
    for label in labels:
        (root / label).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(root / label / f"{number}.png")
    return root


def test_a_folder_of_images_is_run_and_its_labels_are_the_bundles(own: Path, tmp_path: Path) -> None:
    read = bundle.read(own)
    root = class_folders(tmp_path / "images" / "test", read.manifest.labels).parent
    found = find(str(root), read, QUIET)
    assert found.labels is not None
    assert found.labels.tolist() == [place for place in range(len(read.manifest.labels)) for _ in range(3)]
    assert found.stage_logits[0].shape == (len(found), len(read.manifest.labels))
    assert found.seen == "unknown"


@pytest.mark.parametrize(("part", "seen"), [("test", "no"), ("train", "yes"), ("", "yes")])
def test_a_folder_of_the_bundles_own_data_set_is_known_by_its_name(
    part: str, seen: str, own: Path, tmp_path: Path
) -> None:
    read = bundle.read(own)
    made = read.manifest.provenance.model_copy(update={"dataset": "imagefolder:birds"})
    read = replace(read, manifest=read.manifest.model_copy(update={"provenance": made}))
    root = class_folders(tmp_path / "birds" / part, read.manifest.labels, 1)
    assert find(str(root), read, QUIET).seen == seen


def test_folders_that_are_no_images_of_the_bundles_classes_are_refused(own: Path, tmp_path: Path) -> None:
    read = bundle.read(own)
    with pytest.raises(RecipeError, match="holds no folders of images"):
        find(str(tmp_path), read, QUIET)
    with pytest.raises(RecipeError, match="has the class 'dragon'"):
        find(str(class_folders(tmp_path / "a", ("dragon",))), read, QUIET)
    spoilt = class_folders(tmp_path / "b", read.manifest.labels[:1])
    (spoilt / read.manifest.labels[0] / "0.png").write_bytes(b"no image")
    with pytest.raises(RecipeError, match=r"cannot decode .*0\.png"):
        find(str(spoilt), read, QUIET)


def recipe(folder: Path, **changes: object) -> str:
    """The small run's own recipe, as a file."""
    path = folder / "recipe.yaml"
    whole = document()
    path.write_text(yaml.safe_dump({**whole, "data": {**whole["data"], **changes}}))
    return str(path)


def test_the_dv_of_the_bundles_recipe_is_proved_by_its_fingerprint(own: Path, tmp_path: Path) -> None:
    read = bundle.read(own)
    found = find(recipe(tmp_path), read, QUIET)
    assert (found.seen, found.fingerprint) == ("no", read.manifest.exit.rule.fingerprint)
    assert found.other is not None
    assert read.manifest.calibration is not None
    assert len(found) == read.manifest.calibration.samples


def test_other_samples_of_the_training_part_are_known_by_their_fingerprint(own: Path, tmp_path: Path) -> None:
    found = find(recipe(tmp_path, split_seed=7), bundle.read(own), QUIET)
    assert found.seen == "yes"
    with pytest.raises(RecipeError, match="the samples were trained on: these are not the samples of the bundle's D_v"):
        calibrate(own, Wishes(data=recipe(tmp_path, split_seed=7), quiet=True))


def test_samples_that_were_trained_on_are_taken_where_that_is_allowed(own: Path, tmp_path: Path) -> None:
    found = calibrate(own, Wishes(data=recipe(tmp_path, split_seed=7), quiet=True, allow_seen=True))
    assert {each.seen for each in found} == {"yes"}
    assert not any(each.certified for each in found)


def test_a_recipe_that_makes_other_inputs_is_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.size is 9, the bundle has 8"):
        find(recipe(tmp_path, size=9), bundle.read(own), QUIET)


def test_data_that_is_resized_with_another_filter_is_refused(own: Path, tmp_path: Path) -> None:
    read = bundle.read(own)
    rule = read.manifest.preprocess.model_copy(update={"interpolation": "bicubic"})
    read = replace(read, manifest=read.manifest.model_copy(update={"preprocess": rule}))
    for data in (recipe(tmp_path), "digits"):
        with pytest.raises(RecipeError, match=r"data\.interpolation is bilinear, the bundle has bicubic: give"):
            find(data, read, QUIET)


def test_a_data_set_is_taken_by_its_name(own: Path) -> None:
    found = find("digits", bundle.read(own), QUIET)
    assert (found.seen, len(found)) == ("unknown", 359)


def test_profiles_are_written_drawn_and_replaced_by_name(own: Path, tmp_path: Path) -> None:
    page, pictures = tmp_path / "report.html", tmp_path / "png"
    first = Wishes(data=recipe(tmp_path), rules=("paper", "agreement(0.2, 0.2, average)"), quiet=True)
    calibrate(own, first)
    calibrate(own, replace(first, rules=("paper(0.5)", "x=paper", "paper"), report=page, png=pictures, latency=True))
    names = [each.name for each in bundle.read(own).manifest.profiles]
    assert names == ["agreement-20-average", "paper-0.5", "x", "paper"]
    text = page.read_text(encoding="utf-8")
    assert not re.search(
        r"""(?:src|href)=["']?(?:https?:|//)|<script|@import|url\((?!#)""", text.replace('xlink:href="#', "")
    )
    assert text.count("<figure>") == len(list(pictures.glob("*.png"))) == 2 + 1 + 3 + 3
    assert "data:image/png;base64," in text


def test_without_labels_the_page_shows_agreement(own: Path, tmp_path: Path) -> None:
    manifest, random = bundle.read_manifest(own), np.random.default_rng(0)
    stages = {
        f"stage{number}": random.normal(size=(50, len(manifest.labels))) * 3 for number in range(len(manifest.stages))
    }
    file, page = write_npz(tmp_path / "l.npz", **stages), tmp_path / "r.html"
    calibrate(own, Wishes(logits=file, rules=("paper",), report=page))
    assert "Agreement against cost" in page.read_text(encoding="utf-8")
    assert "Reliability" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(), "either --data or --logits"),
        (Wishes(data="a", logits=Path("b")), "either --data or --logits"),
        (Wishes(data="a", rules=("paper", "paper")), "two rules are called 'paper'"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused(wishes: Wishes, words: str, own: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        calibrate(own, wishes)


def test_times_are_measured_for_each_stage(own: Path) -> None:
    timing = measure(bundle.read(own), rounds=2)
    assert len(timing.stages_ms) == 3
    assert min(timing.stages_ms) > 0
    assert "onnxruntime" in timing.hardware


def test_the_command_says_what_it_wrote_and_show_says_it_again(own: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(
        main, ["calibrate", str(own), "--data", recipe(tmp_path), "--rule", "mine=paper", "--quiet"]
    )
    assert said.exit_code == 0, said.output
    assert "mine" in said.output
    assert "mine" in CliRunner().invoke(main, ["show", str(own)]).output
    refused = CliRunner().invoke(main, ["calibrate", str(own), "--data", "dragons"])
    assert refused.exit_code == 1
    assert "no data set is called 'dragons'" in refused.output
