"""Whole runs that reuse teachers: what is stored is what is served, and what cannot work fails before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cascade.errors import RecipeError
from cascade.figures import accuracy
from tests.tiny_run import tiny_recipe, train_tiny
from tests.training.networks import same, state
from training.__main__ import main
from training.data import Batches, load
from training.evaluate import evaluate, labels_of, logits_of
from training.models import Network
from training.models.count import params
from training.run import Run, open_run

pytestmark = pytest.mark.train

SMALL = "resnet8_0.125_a"
VANILLA = {"name": "vanilla"}
RESIDUAL = {"models": [SMALL], "stop": {"count": 1}}
TEACHER = {"model": SMALL, "method": VANILLA}
QUICK: dict[str, Any] = {
    "schedule": {"epochs": 1, "batch_size": 256, "lr": 0.1, "policy": "cosine"},
    "teacher": TEACHER,
    "residual": None,
}


def trained(folder: Path, method: dict[str, Any], student: dict[str, Any] | None = None, **changes: Any) -> Run:
    return train_tiny(folder, **{**QUICK, "student": {"model": SMALL, "method": method, **(student or {})}, **changes})


def two(**changes: Any) -> dict[str, Any]:
    return {"teacher": None, "teachers": [TEACHER, {**TEACHER, "model": "resnet8_0.25_a"}], **changes}


@pytest.fixture(scope="module")
def reused(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of SimKD."""
    return trained(tmp_path_factory.mktemp("simkd") / "run", {"name": "simkd"})


def test_a_run_of_simkd_stores_the_whole_under_its_name(reused: Run) -> None:
    name, net = reused.network("student")
    assert name == f"simkd({SMALL}, {SMALL})" == reused.figures("student")["model"]
    teacher = reused.network("teacher")[1]
    assert isinstance(net, Network)
    assert isinstance(teacher, Network)
    assert same(state(net.classifier), state(teacher.classifier))


def test_a_run_of_simkd_is_evaluated_as_any_other(reused: Run) -> None:
    found = evaluate(reused, quiet=True)
    assert found.dv.sums[-1].accuracy == reused.figures("student")["dv"]["accuracy"]


def test_a_res_student_can_follow_a_reused_teacher(reused: Run, tmp_path: Path) -> None:
    residual = {"models": [SMALL], "stop": {"count": 1}}
    run = trained(tmp_path / "run", {"name": "simkd"}, teacher={"run": str(reused.folder)}, residual=residual)
    assert run.stages() == ["student", "residual1"]
    assert run.network("student")[0] == f"simkd({SMALL}, {SMALL})"


def test_several_teachers_each_have_a_step(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"name": "simkd", "reduction": 4}, **two())
    assert sorted(path.name for path in (run.folder / "steps").iterdir()) == ["student", "teacher1", "teacher2"]
    assert run.network("student")[0] == f"simkd({SMALL}, {SMALL}, resnet8_0.25_a; reduction=4)"
    assert evaluate(run, quiet=True).test.teacher is None


def test_the_student_of_simkd_v_is_stored_under_its_own_name_with_its_classifier(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"name": "simkd_v"}, **two())
    assert run.network("student")[0] == SMALL


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of joint training that serves the teacher's head."""
    return trained(tmp_path_factory.mktemp("joint") / "run", {"name": "simkd_joint"})


def test_both_heads_of_joint_training_are_measured_after_each_epoch(joint: Run) -> None:
    lines = [json.loads(line) for line in (joint.folder / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in lines if line["step"] == "student"]
    figures = joint.figures("student")
    assert epoch["dv/accuracy"] == figures["dv"]["accuracy"]
    assert epoch["dv/accuracy_student"] == figures["heads"]["student"]["accuracy"]


def test_both_heads_of_joint_training_are_evaluated(joint: Run) -> None:
    found = evaluate(joint, quiet=True)
    (head,) = found.heads
    assert (head.stage, head.name) == ("student", "student")
    assert head.dv == joint.figures("student")["heads"]["student"]["accuracy"]
    data = load(joint.recipe.data, quiet=True)
    logits = logits_of([joint.heads("student")["student"]], data.test, Batches(data.preprocess, torch.device("cpu")))
    assert head.test == accuracy(logits[0], labels_of(data.test))


def test_evaluate_prints_the_head_that_is_not_served(joint: Run) -> None:
    result = CliRunner().invoke(main, ["evaluate", str(joint.folder), "--quiet"])
    (head,) = evaluate(joint, quiet=True).heads
    line = f"student: its student head, not served: {head.test:.2%} on the test images, {head.dv:.2%} on D_v"
    assert line in result.stdout.splitlines()


def test_the_head_that_is_served_and_the_other_change_places(joint: Run, tmp_path: Path) -> None:
    other = trained(tmp_path / "run", {"name": "simkd_joint", "deploy": "student"})
    assert same(state(other.heads("student")["teacher"]), state(joint.network("student")[1]))
    assert same(state(joint.heads("student")["student"]), state(other.network("student")[1]))
    (head,) = evaluate(other, quiet=True).heads
    assert head.test == evaluate(joint, quiet=True).test.sums[-1].accuracy


def test_a_run_that_kept_no_other_head_is_evaluated_without_it(joint: Run, tmp_path: Path) -> None:
    shutil.copytree(joint.folder, tmp_path / "run")
    (tmp_path / "run" / "steps" / "student" / "head_student.safetensors").unlink()
    assert evaluate(open_run(tmp_path / "run"), quiet=True).heads == ()


def test_the_other_head_goes_along_where_a_step_is_taken_from_another_run(joint: Run, tmp_path: Path) -> None:
    again = trained(tmp_path / "run", {"name": "simkd_joint"}, name="again", reuse=(joint.folder,))
    assert not (again.folder / "metrics.jsonl").exists()
    assert same(state(again.heads("student")["student"]), state(joint.heads("student")["student"]))


def test_no_head_is_kept_of_a_student_that_was_cut_before(reused: Run, tmp_path: Path) -> None:
    method = {"name": "simkd_joint", "deploy": "student"}
    slim = {"rate": 0.4, "floor": 1, "shared": True, "method": method}
    run = trained(tmp_path / "run", VANILLA, {"slim": slim}, teacher={"run": str(reused.folder), "step": "teacher"})
    assert run.stages() == ["student_slim"]
    assert run.figures("student_slim")["heads"].keys() == {"teacher"}
    assert evaluate(run, quiet=True).heads == ()


def test_sequential_training_takes_the_body_of_another_run(reused: Run, tmp_path: Path) -> None:
    start = {"start": str(reused.folder)}
    run = trained(tmp_path / "run", {"name": "simkd_sequential"}, start, teacher=None)
    name, net = run.network("student")
    other = reused.network("student")[1]
    assert name == SMALL
    assert isinstance(net, Network)
    assert isinstance(other, Network)
    assert same(state(net.stem, net.stages), state(other.stem, other.stages))


@pytest.mark.parametrize(
    ("student", "changes", "message"),
    [
        ({"method": {"name": "simkd", "reduction": 99}}, {}, "student: method 'simkd': reduction 99 leaves none of 8"),
        ({"method": {"name": "simkd", "stages": 3}}, {}, "student: .* take 2 at most"),
        ({"model": "torchvision:vit_b_16", "method": {"name": "simkd"}}, {}, "student: .*not made of maps"),
        ({"method": {"name": "simkd_sequential"}}, {}, "student: .*give student.start"),
        ({"method": {"name": "kd"}}, two(), "student: method 'kd' learns from one teacher, and the recipe has 2"),
        ({"method": {"name": "simkd"}, "start": "/nowhere"}, {}, "student: /nowhere is no run"),
        (
            {"method": VANILLA, "slim": {"rate": 0.4, "floor": 1, "method": {"name": "simkd"}}},
            {},
            r"student\.slim: method 'simkd' makes simkd\(.* cannot say which channels were cut",
        ),
        (
            {"method": {"name": "simkd"}},
            {"residual": {"models": [SMALL], "stop": {"count": 1}, "start": "previous"}},
            "residual.start 'previous' .* say 'fresh'",
        ),
    ],
)
def test_what_cannot_work_fails_before_anything_is_made(
    student: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = {"data": {"name": "digits", "size": 224 if "vit" in str(student) else 8}}
    with pytest.raises(RecipeError, match=message):
        trained(tmp_path / "run", {}, student, **{**data, **changes})
    assert not (tmp_path / "run").exists()


def test_a_student_that_reuses_its_teacher_can_be_slimmed(reused: Run, tmp_path: Path) -> None:
    slim = {"rate": 0.4, "floor": 1, "shared": True}
    run = trained(tmp_path / "run", {"name": "simkd"}, {"slim": slim}, teacher={"run": str(reused.folder)})
    name, net = run.network("student_slim")
    assert name == run.network("student")[0] == f"simkd({SMALL}, {SMALL})"
    assert params(net) < params(run.network("student")[1])
    assert evaluate(run, quiet=True).dv.sums[-1].accuracy == run.figures("student_slim")["dv"]["accuracy"]


def test_a_step_is_taken_where_it_began_from_the_same_weights_and_from_no_others(reused: Run, tmp_path: Path) -> None:
    def begun(name: str, start: Path, reuse: tuple[Path, ...] = ()) -> Run:
        student = {"model": SMALL, "method": VANILLA, "start": str(start)}
        return train_tiny(tmp_path / name, **{**QUICK, "teacher": None, "student": student}, reuse=reuse)

    first = begun("first", reused.folder)
    again = begun("again", reused.folder, (first.folder,))
    other = begun("other", first.folder, (first.folder,))
    assert again.figures("student") == first.figures("student")
    assert [(run.folder / "metrics.jsonl").exists() for run in (first, again, other)] == [True, False, True]
    assert other.figures("student")["key"] != first.figures("student")["key"]


def test_another_body_cannot_be_begun_from(reused: Run, tmp_path: Path) -> None:
    student = {"model": "resnet8_0.25_a", "start": str(reused.folder)}
    with pytest.raises(RecipeError, match="another body than student"):
        trained(tmp_path / "run", VANILLA, student, teacher=None)


def test_a_run_on_other_data_cannot_be_begun_from(reused: Run, tmp_path: Path) -> None:
    data = {**reused.recipe.data.model_dump(), "split_seed": 9}
    with pytest.raises(RecipeError, match=r"student.start .* other data: data.split_seed differ"):
        trained(tmp_path / "run", VANILLA, {"start": str(reused.folder)}, teacher=None, data=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": [TEACHER]}, "both a teacher and teachers"),
        (two(residual=RESIDUAL), "one teacher, and here are 2, which is not supported: leave residual out, or"),
        ({"teacher": None, "residual": RESIDUAL}, "give a teacher"),
        (two(residual=None, exit={"reference": "T"}), "there is no teacher"),
        (two(residual=None, teachers=[{**TEACHER, "schedule": {"lr": 0}}]), "teacher1.schedule.lr"),
        (two(residual=None, teachers=[{**TEACHER, "prune": {}}]), "prune each in a run of its own"),
    ],
)
def test_recipes_whose_teachers_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(**changes)


def test_scaling_reaches_every_teacher() -> None:
    own = {**TEACHER, "schedule": {"epochs": 40}}
    recipe = tiny_recipe(**two(residual=None, teachers=[TEACHER, own]))
    assert [teacher.schedule.get("epochs") for teacher in recipe.scaled(0.05).teachers] == [None, 2]


def test_a_run_of_simkd_that_is_gone_on_with_gives_the_same_network(reused: Run, tmp_path: Path) -> None:
    again = trained(tmp_path / "run", {"name": "simkd"})
    assert all(
        torch.equal(a, b) for a, b in zip(*(state(run.network("student")[1]) for run in (again, reused)), strict=True)
    )
