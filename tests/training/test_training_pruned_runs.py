"""Recipes that prune: rounds, a student of the teacher's sparsity, channels cut, steps taken from other runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cascade.errors import RecipeError
from export.build import build
from tests.tiny_run import train_tiny
from tests.training.networks import same, state
from tests.training.test_training_steps import results
from training.__main__ import main
from training.evaluate import evaluate
from training.models.count import params
from training.models.dirac import fold_dirac, undecayed
from training.pruning.cut import kept_of
from training.pruning.magnitude import prunable
from training.run import Run

pytestmark = pytest.mark.train

VGG = "vgg_8_12-12_prd"
VANILLA = {"name": "vanilla"}
DATA = {"name": "digits", "size": 8, "augment": {"pad": 1, "flip": False}, "dv_fraction": 0.2, "dv_exclude": True}
TEACHER: dict[str, Any] = {"model": VGG, "method": VANILLA, "prune": {"sparsity": 0.59}}
PRUNED: dict[str, Any] = {
    "data": DATA,
    "schedule": {"epochs": 1, "batch_size": 128, "lr": 0.1, "policy": "one_cycle", "weight_decay": 5e-4},
    "teacher": TEACHER,
    "student": {"model": "designed", "method": {"name": "kd", "tau": 0.95, "ts_loss": "kl", "t": 10}},
    "residual": None,
}
SLIM: dict[str, Any] = {
    "model": "resnet8_0.25_a",
    "method": {"name": "slimming"},
    "slim": {"rate": 0.4, "floor": 1, "shared": True, "method": {"name": "kd"}},
}


@pytest.fixture(scope="module")
def pruned_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four rounds, and a student; tests leave it as it is."""
    return train_tiny(tmp_path_factory.mktemp("pruned") / "run", **PRUNED)


def test_every_round_leaves_its_network_and_the_last_one_teaches(pruned_run: Run) -> None:
    assert pruned_run.teacher() == "teacher_round4"
    totals = [pruned_run.figures(f"teacher_round{number}")["layers"][-1] for number in (1, 2, 3, 4)]
    shares = [row["kept"] / row["total"] for row in totals]
    assert shares == pytest.approx([0.8, 0.64, 0.512, 0.4096], abs=1e-3)


def test_a_round_trains_on_with_its_masks(pruned_run: Run) -> None:
    for number in (1, 4):
        masks, net = pruned_run.masks(f"teacher_round{number}"), pruned_run.network(f"teacher_round{number}")[1]
        assert masks is not None
        weights = dict(prunable(net))
        assert not any(weights[name][~mask].any() for name, mask in masks.kept.items())
        before = dict(prunable(pruned_run.network("teacher" if number == 1 else "teacher_round3")[1]))
        assert any(not torch.equal(weights[name], before[name] * mask) for name, mask in masks.kept.items())


def test_what_was_pruned_in_one_round_stays_pruned_in_the_next(pruned_run: Run) -> None:
    first, last = pruned_run.masks("teacher_round1"), pruned_run.masks("teacher_round4")
    assert first is not None
    assert last is not None
    assert all(bool((first.kept[name] | ~mask).all()) for name, mask in last.kept.items())


def test_the_designed_student_has_as_many_weights_as_are_left(pruned_run: Run) -> None:
    name, student = pruned_run.network("student")
    masks = pruned_run.masks("teacher_round4")
    assert masks is not None
    left = sum(int(mask.sum()) for key, mask in masks.kept.items() if key != "classifier.weight")
    weights = sum(weight.numel() for _, weight in prunable(student) if weight.ndim == 4)
    assert name.startswith("vgg_")
    assert weights == pytest.approx(left, rel=0.15)  # channels are whole, and there are few


def test_a_pruned_run_is_evaluated_and_exported_with_the_teacher_that_taught(pruned_run: Run, tmp_path: Path) -> None:
    evaluation = evaluate(pruned_run, quiet=True)
    manifest = build(pruned_run, tmp_path / "bundle", quiet=True).manifest
    assert evaluation.test.teacher is not None
    assert manifest.test is not None
    assert manifest.stages[0].network == pruned_run.network("student")[0]
    assert manifest.test.teacher is not None
    assert manifest.test.teacher.accuracy == pytest.approx(evaluation.test.teacher.accuracy)


def test_a_run_that_ended_between_rounds_goes_on_as_if_it_had_not(pruned_run: Run, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("logits", "evaluation.json")
    whole, stopped = (
        shutil.copytree(pruned_run.folder, tmp_path / name, ignore=ignored) for name in ("whole", "stopped")
    )
    for path in (*stopped.glob("steps/teacher_round[34]"), stopped / "steps" / "student"):
        shutil.rmtree(path)
    (stopped / "cascade.json").unlink()
    train_tiny(stopped, **PRUNED)
    expected = results(whole)
    assert {name: data for name, data in results(stopped).items() if name != "metrics.jsonl"} == {
        name: data for name, data in expected.items() if name != "metrics.jsonl"
    }


def test_sparsity_says_what_is_left_and_what_it_changed(pruned_run: Run) -> None:
    result = CliRunner().invoke(main, ["sparsity", str(pruned_run.folder), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [item["layers"][-1]["kept"] for item in found["pruned"]] == [
        pruned_run.figures(f"teacher_round{number}")["layers"][-1]["kept"] for number in (1, 2, 3, 4)
    ]
    assert all(isinstance(item["smoothing"], float) for item in found["pruned"])
    assert 0 < found["agreement"] <= 1
    assert found["agreement"] == evaluate(pruned_run, quiet=True).agreement
    weights = [weight.numel() for _, weight in prunable(pruned_run.network("student")[1])]
    assert [row["kept"] for row in found["student"]] == [*weights, sum(weights)]


def test_sparsity_is_a_table_for_people(pruned_run: Run) -> None:
    result = CliRunner().invoke(main, ["sparsity", str(pruned_run.folder), "--quiet"])
    assert "round4" in result.stdout
    assert "classifier" in result.stdout
    assert "agree on" in result.stdout
    assert "…" not in result.stdout
    [total] = [line.split("│")[1:-1] for line in result.stdout.splitlines() if "total" in line]
    weights = sum(weight.numel() for _, weight in prunable(pruned_run.network("student")[1]))
    whole = sum(weight.numel() for _, weight in prunable(pruned_run.network("teacher")[1]))
    assert [cell.strip() for cell in total[-2:]] == [f"{weights:,}", f"{weights / whole:.2%}"]


def test_a_run_in_which_nothing_was_pruned_has_no_sparsity(tiny_run: Run) -> None:
    result = CliRunner().invoke(main, ["sparsity", str(tiny_run.folder), "--quiet"])
    assert result.exit_code == 1
    assert "no teacher was pruned" in result.stderr


def test_a_teacher_of_fewer_rounds_can_be_taken_from_a_run_with_its_masks(pruned_run: Run, tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path / "run", **{**PRUNED, "teacher": {"run": str(pruned_run.folder), "step": "teacher_round2"}}
    )
    name, teacher = run.network("teacher")
    masks = run.masks("teacher")
    assert name == VGG
    assert same(state(teacher), state(pruned_run.network("teacher_round2")[1]))
    assert masks is not None
    assert sum(int(mask.sum()) for mask in masks.kept.values()) == run.figures("teacher")["layers"][-1]["kept"]
    assert params(run.network("student")[1]) > params(pruned_run.network("student")[1])


def test_a_step_that_a_run_does_not_have_is_refused(pruned_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no finished teacher_round9"):
        train_tiny(tmp_path / "run", **{**PRUNED, "teacher": {"run": str(pruned_run.folder), "step": "teacher_round9"}})


def test_no_student_can_be_designed_from_a_run_whose_teacher_is_whole(pruned_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="was not pruned, so no student follows"):
        train_tiny(tmp_path / "run", **{**PRUNED, "teacher": {"run": str(pruned_run.folder), "step": "teacher"}})


def test_a_teacher_that_no_student_can_be_designed_from_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no student can be designed from 'resnet8_a'"):
        train_tiny(tmp_path / "run", **{**PRUNED, "teacher": {**TEACHER, "model": "resnet8_a"}})
    assert not (tmp_path / "run").exists()


def test_steps_are_taken_from_another_run_while_nothing_before_them_differs(pruned_run: Run, tmp_path: Path) -> None:
    changes = {**PRUNED, "teacher": {**TEACHER, "prune": {"sparsity": 0.36}}, "name": "fewer"}
    taken = train_tiny(tmp_path / "taken", reuse=(pruned_run.folder,), **changes)
    trained = train_tiny(tmp_path / "trained", **changes)
    lines = (tmp_path / "taken" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {"student"}
    for step in ("teacher", "teacher_round1", "teacher_round2", "student"):
        assert same(state(taken.network(step)[1]), state(trained.network(step)[1]))
        assert taken.figures(step) == trained.figures(step)


def test_a_step_is_trained_again_where_what_came_before_differs(pruned_run: Run, tmp_path: Path) -> None:
    prune = {"sparsity": 0.2, "schedule": {"lr": 0.05}}
    train_tiny(tmp_path / "run", reuse=(pruned_run.folder,), **{**PRUNED, "teacher": {**TEACHER, "prune": prune}})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == ["teacher_round1", "student"]


def test_a_slimmed_student_is_narrow_served_and_comes_back_from_its_file(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", student=SLIM, residual={"models": ["resnet8_0.125_a"], "stop": {"count": 1}})
    assert run.stages() == ["student_slim", "residual1"]
    name, net = run.network("student_slim")
    assert name == "resnet8_0.25_a"
    assert kept_of(net) is not None
    manifest = build(run, tmp_path / "bundle", quiet=True).manifest
    assert manifest.stages[0].params == params(net) < params(run.network("student")[1])


def test_res_students_are_narrow_served_and_come_back_from_their_files(tmp_path: Path) -> None:
    method = {"name": "slimming", "of": {"name": "res_kd"}}
    slim = {"rate": 0.4, "floor": 1, "shared": True}
    residual = {"models": ["resnet8_0.25_a"], "method": method, "slim": slim, "stop": {"count": 2}}
    run = train_tiny(tmp_path / "run", residual=residual)
    assert run.stages() == ["student", "residual1_slim", "residual2_slim"]
    manifest = build(run, tmp_path / "bundle", quiet=True).manifest
    whole = params(run.network("residual1")[1])
    nets = [run.network(step)[1] for step in run.stages()[1:]]
    assert all(kept_of(net) is not None for net in nets)
    assert [stage.params for stage in manifest.stages[1:]] == [params(net) for net in nets]
    assert max(params(net) for net in nets) < whole


def test_a_res_student_that_cannot_be_cut_is_refused_before_training(tmp_path: Path) -> None:
    residual = {"models": ["shufflenetv1"], "slim": {"rate": 0.4}, "stop": {"count": 1}}
    with pytest.raises(RecipeError, match=r"residual\.slim: slimming finds no channel"):
        train_tiny(tmp_path / "run", residual=residual)


def test_a_dirac_student_is_slimmed_as_the_plain_network_it_stands_for(tmp_path: Path) -> None:
    student = {**SLIM, "model": "jointrd_plain_none18_0.0625_cifar_dirac"}
    quick = {"epochs": 1, "batch_size": 256, "lr": 0.05, "policy": "cosine"}
    run = train_tiny(tmp_path / "run", schedule=quick, student=student, residual=None)
    net = run.network("student_slim")[1]
    assert undecayed(run.network("student")[1])
    assert not undecayed(net)
    manifest = build(run, tmp_path / "bundle", quiet=True).manifest
    assert manifest.stages[0].params == params(net) < params(fold_dirac(run.network("student")[1]))


def test_a_round_begins_with_the_weights_it_found_and_not_with_earlier_ones(tmp_path: Path) -> None:
    still = {"lr": 1e-12, "weight_decay": 0.0}
    teacher = {**TEACHER, "prune": {"sparsity": 0.36, "schedule": still}}
    run = train_tiny(tmp_path / "run", **{**PRUNED, "teacher": teacher})
    for before, after in (("teacher", "teacher_round1"), ("teacher_round1", "teacher_round2")):
        masks, found = run.masks(after), dict(prunable(run.network(after)[1]))
        assert masks is not None
        for name, weight in prunable(run.network(before)[1]):
            assert torch.allclose(found[name], weight * masks.kept[name], rtol=0, atol=1e-7)


def test_students_that_were_designed_or_cut_may_learn_from_features(pruned_run: Run, tmp_path: Path) -> None:
    fitnet = {"name": "fitnet", "hint": 1}
    teacher = {"run": str(pruned_run.folder), "step": "teacher_round2"}
    student = {"model": "designed", "method": fitnet, "slim": {"rate": 0.3, "floor": 1, "method": fitnet}}
    run = train_tiny(tmp_path / "run", **{**PRUNED, "teacher": teacher, "student": student})
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == ["student", "student_slim"]
    assert all(line["loss/fitnet"] > 0 for line in lines)
    assert params(run.network("student_slim")[1]) < params(run.network("student")[1])


def test_a_method_that_does_not_fit_what_is_cut_is_refused_before_training(tmp_path: Path) -> None:
    slim = {**SLIM["slim"], "method": {"name": "joint_rd", "paths": [9]}}
    with pytest.raises(RecipeError, match=r"student\.slim: method 'joint_rd'"):
        train_tiny(tmp_path / "run", student={**SLIM, "slim": slim})
    assert not (tmp_path / "run").exists()


def test_a_slimmed_run_is_the_same_again(tmp_path: Path) -> None:
    quick = {"epochs": 1, "batch_size": 256, "lr": 0.1, "policy": "cosine"}
    student = {**SLIM, "slim": {"rate": 0.4, "floor": 1}}
    for name in ("one", "other"):
        train_tiny(tmp_path / name, schedule=quick, teacher=None, student=student, residual=None)
    assert results(tmp_path / "one") == results(tmp_path / "other")


def test_the_best_epoch_on_dv_is_the_result(tmp_path: Path) -> None:
    swings = {"epochs": 4, "batch_size": 128, "lr": 1.0, "policy": "step"}  # too fast on purpose
    for select, better in (("dv_loss", min), ("dv_accuracy", max)):
        changes = {"teacher": None, "schedule": {**swings, "select": select}}
        run = train_tiny(tmp_path / select, **{**PRUNED, **changes, "student": {"model": VGG, "method": VANILLA}})
        key = "dv/loss" if select == "dv_loss" else "dv/accuracy"
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        best = better(lines, key=lambda line: line[key])
        assert run.figures("student")["dv"]["accuracy"] == pytest.approx(best["dv/accuracy"])
