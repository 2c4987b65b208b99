"""A whole recipe: which networks are trained, from which teacher, and when it stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.errors import RecipeError
from cascade.figures import mean_energy, running_sums
from tests.tiny_run import DOCUMENT, tiny_recipe, train_tiny
from tests.training.folders import COLOURS, image_folder
from tests.training.networks import same, state
from tests.training.quick_runs import EPOCH, KD, SMALL, VANILLA, quick
from training import models
from training.data import Batches, load
from training.evaluate import evaluate, logits_of
from training.run import Run, create, open_run
from training.start import begin_from
from training.steps import run_recipe

pytestmark = pytest.mark.train


def residual(**stop: Any) -> dict[str, Any]:
    return {"models": [SMALL, "resnet8_0.25_a"], "stop": stop}


def results(folder: Path) -> dict[str, bytes]:
    """Every file that must not depend on when or how often a run was stopped."""
    kept = [*folder.rglob("*.safetensors"), *folder.rglob("*.json"), *folder.rglob("*.jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_run_leaves_a_network_for_each_step_and_no_checkpoint(tiny_run: Run) -> None:
    steps = ["residual1", "residual2", "student", "teacher"]
    assert sorted(path.name for path in (tiny_run.folder / "steps").iterdir()) == steps
    assert tiny_run.stages() == ["student", "residual1", "residual2"]
    for step in steps:
        files = sorted(path.name for path in tiny_run.step(step).iterdir())
        assert files == ["network.safetensors", "step.json"]


def test_the_same_recipe_gives_the_same_bits(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "first", ignore=shutil.ignore_patterns("logits", "evaluation.json"))
    again = train_tiny(tmp_path / "second")
    assert results(again.folder) == results(tmp_path / "first")


def test_another_seed_gives_another_network(tmp_path: Path) -> None:
    one, other = (
        quick(tmp_path / str(seed), seed=seed, teacher=None, student={"model": SMALL, "method": VANILLA})
        for seed in (1, 2)
    )
    assert not same(state(one.network("student")[1]), state(other.network("student")[1]))


def test_a_finished_run_is_left_as_it_is(tiny_run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.folder.rglob("*.safetensors")}
    run_recipe(tiny_run.recipe, tiny_run.folder, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in tiny_run.folder.rglob("*.safetensors")} == before


def test_a_run_goes_on_at_the_step_where_it_was_stopped(tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder, ignore=shutil.ignore_patterns("logits", "evaluation.json"))
    before = results(folder)
    shutil.rmtree(folder / "steps" / "residual2")
    (folder / "cascade.json").unlink()
    run_recipe(tiny_run.recipe, folder, quiet=True)
    assert results(folder) == before


def test_a_changed_recipe_in_the_same_folder_is_refused(tiny_run: Run) -> None:
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        run_recipe(tiny_recipe(seed=2), tiny_run.folder, quiet=True)


def test_a_changed_runtime_in_the_same_folder_goes_on(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    recipe = tiny_recipe(runtime={"device": "cpu", "threads": 2})
    assert run_recipe(recipe, tmp_path / "run", quiet=True).stages() == tiny_run.stages()


def test_a_run_that_had_trained_nothing_gives_way_to_another_recipe(tiny_run: Run, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_run.recipe)
    other = tiny_run.recipe.model_copy(update={"seed": 7})
    assert create(run.folder, other).recipe.seed == open_run(run.folder).recipe.seed == 7


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="is not empty and is no run"):
        quick(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_student_can_learn_without_a_teacher(tmp_path: Path) -> None:
    run = quick(tmp_path, teacher=None, student={"model": SMALL, "method": VANILLA})
    assert run.stages() == ["student"]
    assert not run.is_done("teacher")


@pytest.mark.parametrize(
    ("stop", "count"),
    [
        ({"energy": 1e-6}, 1),
        ({"energy": 1e6, "max_stages": 2}, 2),
        ({"count": 1}, 1),
        ({"count": 3}, 3),
        ({"energy": 1e-6, "count": 2}, 2),
        ({"energy": 1e6, "count": 1, "max_stages": 2}, 2),
    ],
    ids=["do-while", "max_stages", "one", "three", "energy and count", "count is not enough"],
)
def test_res_students_are_trained_until_the_rule_holds(tmp_path: Path, stop: dict[str, Any], count: int) -> None:
    run = quick(tmp_path, residual=residual(**stop))
    assert run.stages() == ["student", *(f"residual{number}" for number in range(1, count + 1))]


def test_the_energy_rule_reads_the_sum_and_the_teacher_on_dv(tiny_run: Run, tmp_path: Path) -> None:
    data = load(tiny_run.recipe.data, quiet=True)
    nets = [tiny_run.network(name)[1] for name in ("teacher", *tiny_run.stages())]
    teacher, *stages = logits_of(nets, data.dv, Batches(data.preprocess, torch.device("cpu")))
    first, second = (mean_energy(total) for total in running_sums(stages)[1:])
    assert first < second
    between = (first + second) / 2 / mean_energy(teacher)
    run = train_tiny(tmp_path, residual={**DOCUMENT["residual"], "stop": {"energy": between, "max_stages": 3}})
    assert run.stages() == ["student", "residual1", "residual2"]


def test_a_res_student_is_measured_on_top_of_all_stages_before_it(tiny_run: Run) -> None:
    lines = [json.loads(line) for line in (tiny_run.folder / "metrics.jsonl").read_text().splitlines()]
    last = {line["step"]: line["dv/accuracy"] for line in lines}
    figures = evaluate(tiny_run, quiet=True).dv
    assert [last[step] for step in tiny_run.stages()] == [network.accuracy for network in figures.sums]


def test_the_last_model_is_used_for_all_later_res_students(tmp_path: Path) -> None:
    run = quick(tmp_path, residual=residual(count=3))
    assert [run.network(step)[0] for step in run.stages()] == [SMALL, SMALL, "resnet8_0.25_a", "resnet8_0.25_a"]


def test_a_res_student_may_begin_where_the_stage_before_ended_and_changes_nothing_at_first(tmp_path: Path) -> None:
    start, net = models.build(SMALL, 10).eval(), models.build(SMALL, 10).eval()
    begin_from(start, net)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(net(images), torch.zeros(4, 10))
    given = start.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in net.state_dict().items() if "classifier" not in name)
    run = quick(tmp_path, residual={**residual(count=2), "models": [SMALL], "start": "previous"})
    assert run.stages() == ["student", "residual1", "residual2"]


def test_each_network_has_its_own_schedule(tmp_path: Path) -> None:
    run = quick(tmp_path, teacher={"model": SMALL, "method": VANILLA, "schedule": {"epochs": 2}})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line.split('"')[3] for line in lines] == ["teacher", "teacher", "student"]
    assert run.is_done("student")


def test_figures_of_a_step_are_noted_when_it_ends(tiny_run: Run) -> None:
    figures = tiny_run.figures("student")
    assert figures["model"] == tiny_run.recipe.student.model
    assert 0 < figures["dv"]["accuracy"] < 1
    assert 0.1 < figures["dv"]["energy"] < 1


def test_labels_of_the_test_part_change_nothing_that_is_trained(tmp_path: Path) -> None:
    colours = list(COLOURS)
    for name, order in (("honest", colours), ("garbled", colours[::-1])):
        image_folder(tmp_path / name / "train", (20, 20, 20))
        image_folder(tmp_path / name / "test", (9, 9, 9), seed=1)
        for label, class_ in enumerate(order):
            (tmp_path / name / "test" / class_).rename(tmp_path / name / f"{label}")
        for label, class_ in enumerate(colours):
            (tmp_path / name / f"{label}").rename(tmp_path / name / "test" / class_)
    data = {**DOCUMENT["data"], "dv_fraction": 0.3}
    schedule = {**EPOCH, "batch_size": 16}
    one, other = (
        quick(tmp_path / f"run-{name}", data={**data, "name": f"imagefolder:{tmp_path / name}"}, schedule=schedule)
        for name in ("honest", "garbled")
    )
    for step in ("teacher", "student"):
        assert same(state(one.network(step)[1]), state(other.network(step)[1]))
    assert (one.folder / "metrics.jsonl").read_bytes() == (other.folder / "metrics.jsonl").read_bytes()


def test_images_of_the_test_part_change_nothing_that_is_trained(tmp_path: Path) -> None:
    for name in ("one", "other"):
        image_folder(tmp_path / name / "train", (20, 20, 20))
        image_folder(tmp_path / name / "test", (9, 9, 9), seed=1)
    for file in (tmp_path / "other" / "test").rglob("*.png"):
        Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(file)
    runs = [
        quick(
            tmp_path / f"run-{name}",
            data={**DOCUMENT["data"], "name": f"imagefolder:{tmp_path / name}"},
            schedule={**EPOCH, "batch_size": 16},
        )
        for name in ("one", "other")
    ]
    assert same(state(runs[0].network("student")[1]), state(runs[1].network("student")[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"model": SMALL, "method": KD}}, r"teacher.*'kd' needs a teacher"),
        ({"teacher": None}, r"student.*'kd' needs a teacher"),
        ({"student": {"model": SMALL, "method": {"name": "res_kd"}}}, "student.*under residual"),
        ({"teacher": {"model": "lenet", "method": VANILLA}}, "teacher.*no network is called 'lenet'"),
        ({"student": {"model": "lenet", "method": KD}}, "student.*no network is called 'lenet'"),
        ({"residual": {"models": [SMALL, "lenet"], "stop": {"count": 2}}}, "residual.*no network is called 'lenet'"),
        ({"student": {"model": SMALL, "method": {"name": "alchemy"}}}, "no method is called 'alchemy'"),
        ({"residual": {"models": [SMALL], "method": {"name": "res_kd", "tau": 2}}}, "residual.*tau"),
        (
            {"residual": {"models": [SMALL, "resnet8_0.25_a"], "start": "previous"}},
            "same network of ours, not resnet8_0",
        ),
    ],
    ids=[
        "a teacher by kd",
        "kd without a teacher",
        "a res-student first",
        "no such teacher",
        "no such student",
        "no such second res-student",
        "no such method",
        "a setting out of range",
        "weights that cannot be handed on",
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        quick(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_network_whose_last_step_ran_away_is_not_kept(tmp_path: Path) -> None:
    schedule = {"epochs": 1, "batch_size": 1000, "lr": 1e30, "policy": "cosine"}
    with pytest.raises(RecipeError, match=r"teacher: .*energy.*lower schedule\.lr"):
        quick(tmp_path, schedule=schedule)
    assert not (tmp_path / "steps" / "teacher" / "step.json").exists()


@pytest.mark.parametrize("document", ["[]", "{}", '"x"', '{"run_id": "x"}', "{", ""])
def test_a_folder_with_a_strange_recipe_json_is_refused(tmp_path: Path, document: str) -> None:
    (tmp_path / "recipe.json").write_text(document)
    with pytest.raises(RecipeError):
        open_run(tmp_path)
    with pytest.raises(RecipeError):
        create(tmp_path, tiny_recipe())


def test_a_run_killed_while_it_wrote_its_first_file_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / ".recipe.json.new").write_text('{"run_')
    assert create(tmp_path, tiny_recipe()).recipe == tiny_recipe()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot write"):
        create(tmp_path / "file" / "run", tiny_recipe())


@pytest.mark.parametrize("document", [None, "[]", "{}", "{"])
def test_a_run_that_has_not_finished_has_no_stages(tmp_path: Path, document: str | None) -> None:
    run = create(tmp_path, tiny_recipe())
    if document is not None:
        (tmp_path / "cascade.json").write_text(document)
    with pytest.raises(RecipeError, match=r"has not finished|cannot read"):
        run.stages()


def test_a_run_folder_remembers_its_recipe(tiny_run: Run) -> None:
    assert open_run(tiny_run.folder).recipe == tiny_run.recipe
