"""`rescade train`, `evaluate` and `methods`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.tiny_run import document
from training.__main__ import main
from training.methods.base import METHODS
from training.run import Run, open_run

pytestmark = pytest.mark.train

ONE_NETWORK = ("teacher=null", "residual=null", "student.method.name=vanilla", "schedule.epochs=1")


def rescade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document()))
    return path


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def test_train_makes_a_run_of_the_recipe_with_its_settings(recipe: Path, tmp_path: Path) -> None:
    result = rescade("train", recipe, "--out", tmp_path / "run", "--quiet", *settings(*ONE_NETWORK, "seed=5"))
    assert result.exit_code == 0, result.output
    run = open_run(tmp_path / "run")
    assert run.recipe.seed == 5
    assert run.stages() == ["student"]


def test_train_says_how_it_goes_on_stderr(recipe: Path, tmp_path: Path) -> None:
    result = rescade("train", recipe, "--out", tmp_path / "run", *settings(*ONE_NETWORK))
    assert result.stdout == ""
    assert "student: resnet8_0.25_a: accuracy on D_v" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.epohcs=3", "schedule.epohcs"),
        ("student.model=lenet", "no network is called 'lenet'"),
        (
            "student.model=vgg16_tiny",
            "student: vgg16_tiny halves an image five times, and one of 8 pixels is too small",
        ),
        ("student.model=torchvision:alexnet", "student: the network cannot take images of 8 pixels"),
        ("schedule.lr=1.0e+30", "lower schedule.lr"),
        ("data.name=imagefolder:/nowhere", "/nowhere"),
        ("runtime.device=cuda:99", "GPU"),
    ],
)
def test_what_fails_ends_with_one_line_and_status_1(recipe: Path, tmp_path: Path, setting: str, message: str) -> None:
    result = rescade("train", recipe, "--out", tmp_path / "run", "--quiet", *settings(setting))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "nowhere.yaml", "--out", "run"],
        ["train", __file__],
        ["train", __file__, "--out", __file__],
        ["evaluate"],
        ["evaluate", "nowhere"],
        ["evaluate", "--colour", "red"],
        ["paint"],
    ],
)
def test_what_was_asked_wrongly_ends_with_status_2(arguments: list[str]) -> None:
    result = rescade(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_evaluate_prints_tables_for_both_splits(tiny_run: Run) -> None:
    result = rescade("evaluate", tiny_run.folder, "--quiet")
    assert result.exit_code == 0, result.output
    for word in ("D_v, threshold", "test, threshold", "teacher", "S0", "S2", "adaptive", "exits of"):
        assert word in result.stdout


def test_evaluate_prints_json_for_machines(tiny_run: Run) -> None:
    result = rescade("evaluate", tiny_run.folder, "--quiet", "--json", "--sweep")
    assert json.loads(result.stdout) == json.loads((tiny_run.folder / "evaluation.json").read_text())
    assert len(json.loads(result.stdout)["test_sweep"]) == 20


def test_evaluate_of_something_else_ends_with_one_line_and_status_1(tmp_path: Path) -> None:
    result = rescade("evaluate", tmp_path, "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path} is no run, it has no recipe.json")


def test_train_with_a_scale_has_as_many_times_the_epochs(recipe: Path, tmp_path: Path) -> None:
    options = ["--quiet", *settings(*ONE_NETWORK, "schedule.epochs=20")]
    result = rescade("train", recipe, "--out", tmp_path / "run", "--scale", "0.05", *options)
    assert result.exit_code == 0, result.output
    assert open_run(tmp_path / "run").recipe.schedule.epochs == 1
    assert "take a factor over 0" in rescade("train", recipe, "--out", tmp_path / "no", "--scale", "0", *options).stderr


def test_methods_are_listed_with_what_they_do_and_take() -> None:
    text = rescade("methods").stdout
    assert [line.partition(":")[0] for line in text.splitlines() if line[0] != " "] == sorted(METHODS)
    assert "vanilla: Cross-entropy alone.\n    label_smoothing=0.0\n" in text
    assert "\n    bench=crd, ce=1.0, kd=0.0, t=4.0, weight=100.0, hint=2\n    bench=simkd: kd=1.0, hint=1\n" in text
