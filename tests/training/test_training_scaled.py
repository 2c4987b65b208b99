"""`--scale`: epochs and whatever counts them, shrunk together for a quick look."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.errors import RecipeError
from tests.tiny_run import document
from training.published import FOLDER
from training.recipe import load, parse

pytestmark = pytest.mark.train

TEACHER = {"model": "resnet8_a", "method": {"name": "vanilla"}}


def test_a_scaled_recipe_has_as_many_times_the_epochs_but_never_none_and_is_another_run() -> None:
    recipe = parse(
        document(schedule={"epochs": 240}, student={**document()["student"], "schedule": {"epochs": 30}}), "tiny"
    )
    shrunk = recipe.scaled(0.05)
    assert (shrunk.schedule.epochs, shrunk.schedule_for(shrunk.student.schedule).epochs) == (12, 2)
    assert recipe.scaled(0.001).schedule_for({}).epochs == 1
    assert shrunk.run_id() != recipe.run_id()
    assert recipe.scaled(1.0).run_id() == recipe.run_id()
    assert parse(shrunk.model_dump(mode="json"), "recipe.json") == shrunk


def test_scaling_reaches_pruning_and_slimming_too() -> None:
    own = {"schedule": {"epochs": 40}}
    recipe = parse(
        document(
            schedule={"epochs": 100},
            teacher={**TEACHER, "prune": own},
            student={**document()["student"], "slim": {"rate": 0.3, **own}},
            residual={**document()["residual"], "slim": {"rate": 0.3, **own}},
        ),
        "tiny",
    )
    assert {part: schedule.get("epochs") for part, schedule in recipe.scaled(0.05).trained().items()} == {
        **dict.fromkeys(recipe.trained()),
        "teacher.prune": 2,
        "student.slim": 2,
        "residual.slim": 2,
    }


@pytest.mark.parametrize(("given", "expected"), [({}, 6), ({"horizon": 100}, 10), ({"horizon": 2}, 1)])
def test_scaling_reaches_what_a_method_counts_in_epochs(given: dict[str, int], expected: int) -> None:
    student = {**document()["student"], "method": {"name": "joint_rd", **given}}
    assert parse(document(student=student), "tiny").scaled(0.1).student.method["horizon"] == expected


def test_a_horizon_of_zero_epochs_stays_zero() -> None:
    student = {**document()["student"], "method": {"name": "joint_rd", "horizon": 0}}
    assert parse(document(student=student), "tiny").scaled(0.1).student.method["horizon"] == 0


@pytest.mark.parametrize("path", sorted((FOLDER / "jointrd").glob("cifar100_plain*.yaml")), ids=lambda path: path.stem)
def test_the_paths_weight_falls_in_the_same_share_of_a_scaled_run(path: Path) -> None:
    recipe = load(path).scaled(0.1)
    assert (recipe.schedule.epochs, recipe.student.method["horizon"]) == (20, 6)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_recipe_cannot_be_scaled_by_what_makes_no_sense(factor: float) -> None:
    with pytest.raises(RecipeError, match="factor over 0"):
        parse(document(), "tiny").scaled(factor)
