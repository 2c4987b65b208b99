"""Tables of trained networks: what is trained again, which results count, and how they are printed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import plain, pruned
from benchmarks.runs import Result, Training, by_row, image_folder, markdown, measure, read, results_of, spread, train
from tests.tiny_run import document, train_tiny
from training.methods.base import find
from training.models import build
from training.recipe import parse

pytestmark = pytest.mark.train

DATA = "~/.cache/rescade/cifar10"


def training(folder: Path, row: str = "naive", seed: int = 0) -> Training:
    return Training(row, seed, document(seed=seed), folder / f"{row}-{seed}")


def result(of: Training, accuracy: float = 0.5, **known: float) -> Result:
    return Result(row=of.row, seed=of.seed, run_id=of.run_id, accuracy=accuracy, **known)


def test_a_run_that_is_in_the_file_is_not_trained_again(tmp_path: Path) -> None:
    known, new = training(tmp_path), training(tmp_path, seed=1)
    train([known], [result(known)], through="false")
    with pytest.raises(subprocess.CalledProcessError):
        train([known, new], [result(known)], through="false")
    assert not known.folder.with_suffix(".yaml").exists()
    assert yaml.safe_load(new.folder.with_suffix(".yaml").read_text()) == new.document


def test_a_result_of_another_recipe_is_of_another_run(tmp_path: Path) -> None:
    one = training(tmp_path)
    other = Training(one.row, one.seed, {**one.document, "name": "other"}, one.folder)
    assert by_row([one], [result(other), result(one, 0.7)]) == {"naive": [result(one, 0.7)]}
    with pytest.raises(subprocess.CalledProcessError):
        train([one], [result(other)], through="false")


def test_a_finished_run_is_measured_once_and_an_unfinished_one_is_left(tmp_path: Path) -> None:
    quick = {"epochs": 1, "batch_size": 256, "policy": "cosine"}
    changes: dict[str, Any] = {
        "schedule": quick,
        "student": {"model": "resnet8_0.125_a", "method": {"name": "kd"}},
        "residual": None,
    }
    done = Training("kd", 1, document(**changes), tmp_path / "kd-1")
    train_tiny(done.folder, **changes)
    found = measure([done, training(tmp_path)], tmp_path / "results.jsonl")
    assert len(found) == 1
    assert found[0].teacher is not None
    assert found[0].agreement is not None
    assert measure([done, training(tmp_path)], tmp_path / "results.jsonl") == read(tmp_path / "results.jsonl") == found


def test_runs_that_have_results_are_neither_trained_nor_measured_again(tmp_path: Path) -> None:
    known, new = training(tmp_path), training(tmp_path, seed=1)
    (tmp_path / "results.jsonl").write_text(result(known).model_dump_json() + "\n")
    assert results_of([known, new], [known], tmp_path, through="false") == [result(known)]
    with pytest.raises(subprocess.CalledProcessError):
        results_of([known, new], [new], tmp_path, through="false")


@pytest.mark.parametrize("written", ["~/images/", "~/images", "images", "{home}/images"])
def test_a_folder_below_home_has_one_name_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert image_folder(written.format(home=tmp_path)) == "imagefolder:~/images"


def test_a_folder_elsewhere_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert image_folder(tmp_path / "images") == f"imagefolder:{tmp_path / 'images'}"


@pytest.mark.parametrize("trainings", [plain.trainings, pruned.trainings])
def test_a_run_is_the_same_however_the_folder_of_its_images_is_written(
    trainings: Callable[[str, Path, Iterable[int]], list[Training]],
) -> None:
    one, other = (trainings(str(data), Path("out"), (0,)) for data in (DATA, Path(DATA).expanduser()))
    assert [each.run_id for each in one] == [each.run_id for each in other]


def test_a_spread_is_a_mean_and_the_deviation_of_a_sample() -> None:
    assert str(spread([0.5, 0.6, 0.7])) == "60.00 ± 10.00"
    assert str(spread([0.5])) == "50.00"


def test_a_table_is_markdown_with_its_first_column_to_the_left() -> None:
    assert markdown(["a", "b"], [["x", 1], ["y", 2]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2 |"


def test_the_table_of_plain_networks_is_by_row_and_set_beside_the_naive_one() -> None:
    runs = plain.trainings(DATA, Path("out"), (0, 1))
    accuracies = {"naive": 0.6, "joint_rd": 0.65}
    found = [result(each, accuracies[each.row] + 0.01 * each.seed) for each in runs if each.row in accuracies]
    lines = plain.table(runs, found).splitlines()
    assert lines[2:] == ["| plain, naive | 60.50 ± 0.71 |  | 2 |", "| **JointRD** | 65.50 ± 0.71 | +5.00 | 2 |"]


def test_the_table_of_pruned_teachers_says_what_they_know_and_how_far_the_student_agrees() -> None:
    runs = pruned.trainings(DATA, Path("out"), (0,))
    known = {"alone": {}, "59": {"teacher": 0.8, "agreement": 0.75}}
    found = [
        result(each, 0.6 if each.row == "alone" else 0.625, **known[each.row]) for each in runs if each.row in known
    ]
    lines = pruned.table(runs, found).splitlines()
    assert lines[2:] == ["| no teacher |  | 60.00 |  |  | 1 |", "| 59 % pruned | 80.00 | 62.50 | +2.50 | 75.00 | 1 |"]


@pytest.mark.parametrize("trainings", [plain.trainings, pruned.trainings])
def test_every_row_is_a_recipe_whose_teacher_comes_before_it(
    trainings: Callable[[str, Path, Iterable[int]], list[Training]],
) -> None:
    runs = trainings(DATA, Path("out"), (0, 1, 2))
    before: set[str] = set()
    for each in runs:
        recipe = parse(each.document, each.row)
        find(recipe.student.method)
        build(recipe.student.model, 10, recipe.data.size)
        assert recipe.teacher is None or recipe.teacher.run is None or recipe.teacher.run in before
        before.add(str(each.folder))
    assert len({each.run_id for each in runs}) == len(runs) == len(before)
