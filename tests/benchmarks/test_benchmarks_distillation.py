"""The comparison of distillation methods: which have a row, what is run again, and what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.distillation import Comparison, rows_of, show
from benchmarks.distillation_cost import Stepper, costs, held_by
from benchmarks.distillation_trials import DIGITS, ELSEWHERE, METHODS, NO_DATA, TRIALS, Trial
from tests.training.loops import digits
from tests.training.networks import frozen
from training.device import Device
from training.methods.base import METHODS as REGISTERED
from training.methods.base import find, import_all
from training.settings import Schedule
from training.synthesis.base import DataFree

pytestmark = pytest.mark.train


def compared(out: Path, *lines: dict[str, Any], cost: dict[str, Any] | None = None) -> Comparison:
    found = Comparison("reuse", out)
    for line in lines:
        found.note(line.pop("method"), line.pop("seed"), {"macs": 2_000_000, **line})
    if cost is not None:
        (found.folder / "cost.json").write_text(json.dumps(cost))
    return found


def test_every_registered_method_has_a_row_or_a_reason_why_not() -> None:
    import_all()
    named = [settings["name"] for settings in METHODS.values()]
    assert {*named, *ELSEWHERE} == set(REGISTERED)
    assert not {*named} & {*ELSEWHERE}


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_a_row_are_those_of_a_method(name: str) -> None:
    kind, config = find(METHODS[name])
    assert kind.name == METHODS[name]["name"]
    assert getattr(config, "bench", "none") in ({"reskd"} if "L2" in name else {"crd", "simkd", "none"})


def test_the_table_has_mean_and_deviation_of_the_seeds_and_the_difference_to_plain(tmp_path: Path) -> None:
    lines = [("vanilla", 0, 0.5), ("vanilla", 1, 0.6), ("kd", 0, 0.62), ("kd", 1, 0.64)]
    table = rows_of(compared(tmp_path, *({"method": m, "seed": s, "accuracy": a} for m, s, a in lines)))
    assert list(table)[:3] == [
        ("`vanilla`", "55.00% ± 7.07 (2)", "", "2.00", "", "", ""),
        ("`kd`", "63.00% ± 1.41 (2)", "+8.00", "2.00", "", "", ""),
        ("`simkd`", "not run", "", "", "", "", ""),
    ]


def test_costs_are_given_relative_to_plain_training(tmp_path: Path) -> None:
    cost = {
        "vanilla": {"seconds": 0.02, "held": 1000, "helpers": 0},
        "simkd": {"seconds": 0.03, "held": 1500, "helpers": 1234},
    }
    row = compared(tmp_path, {"method": "vanilla", "seed": 0, "accuracy": 0.5}, cost=cost)
    assert list(rows_of(row))[2][-3:] == ("1.50", "1.50", "1,234")


def test_a_run_that_diverged_is_counted_and_not_averaged(tmp_path: Path) -> None:
    row = compared(
        tmp_path,
        {"method": "kd", "seed": 0, "accuracy": 0.5},
        {"method": "kd", "seed": 1, "accuracy": None, "error": "loss 'ts' is nan"},
    )
    assert list(rows_of(row))[1][1] == "50.00% (1), 1 of 2 diverged"
    all_of_them = compared(
        tmp_path / "none", {"method": "kd", "seed": 0, "accuracy": None, "error": "loss 'ts' is nan"}
    )
    assert list(rows_of(all_of_them))[1][1] == "diverged (1 of 1)"


def test_a_run_in_the_file_is_not_run_again(tmp_path: Path) -> None:
    before = compared(tmp_path, {"method": "kd", "seed": 3, "accuracy": 0.5})
    lines = before.results.read_text()
    before.run("kd", 3)
    assert before.results.read_text() == lines
    assert not before.place("kd", 3).exists()


def tiny(out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Comparison:
    """A trial of one pass over the digits."""
    few = {"epochs": 1, "batch_size": 256, "policy": "cosine", "lr": 0.1}
    trial = Trial(DIGITS, "resnet8_0.125_a", "resnet8_0.125_a", few, {}, **settings)
    monkeypatch.setitem(TRIALS, "tiny", trial)
    return Comparison("tiny", out)


@pytest.mark.parametrize(
    ("row", "share"), [("vanilla", 1), ("vanilla, ten times the lr", 10), ("semckd, half the lr", 0.5)]
)
def test_a_row_has_the_learning_rate_that_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, share: float
) -> None:
    recipe = tiny(tmp_path, monkeypatch).recipe_for(row, 0)
    assert recipe.student is not None
    assert recipe.schedule_for(recipe.student.schedule).lr == pytest.approx(share * recipe.schedule.lr)


def test_a_run_that_is_not_in_the_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny(tmp_path, monkeypatch)
    trial.run("simkd_sequential", 0)  # on the body of a run that has to come before, and that one on the teacher's
    assert list(trial.noted()) == [("teacher", 0), ("simkd", 0), ("simkd_sequential", 0)]
    assert all(0 < row["accuracy"] < 1 for row in trial.noted().values())


def test_a_method_of_several_teachers_has_all_of_them_and_another_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny(tmp_path, monkeypatch, teachers=2)
    trial.run("simkd, several teachers", 0)
    assert list(trial.noted()) == [("teacher", 0), ("teacher", 1), ("simkd, several teachers", 0)]
    assert trial.noted()["simkd, several teachers", 0]["model"].count("resnet8_0.125_a") == 3
    alone, both = (trial.recipe_for(row, 0).teachers_by_step() for row in ("kd", "aveg"))
    assert [Path(str(each.run)).name for each in both.values()] == ["teacher", "teacher-1"]
    assert [Path(str(each.run)).name for each in alone.values()] == ["teacher"]


@pytest.mark.parametrize("row", NO_DATA)
def test_the_sizes_of_methods_without_data_are_those_of_the_recipe(row: str) -> None:
    recipe = yaml.safe_load(Path("training/recipes/data_free/digits.yaml").read_text())
    given = {key: value for key, value in METHODS[row].items() if key not in ("name", "generator_batch")}
    assert given.items() <= recipe["student"]["method"].items()
    trial = TRIALS["no_data"]
    assert (trial.student, trial.teacher) == (recipe["student"]["model"], recipe["teacher"]["model"])
    assert (trial.schedule, trial.data) == (recipe["schedule"], recipe["data"])


@pytest.mark.parametrize("name", [name for name in TRIALS if name != "tiny"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_trial_is_a_recipe_on_either_device_for_as_many_epochs_as_are_asked_for(
    tmp_path: Path, name: str, device: str
) -> None:
    trial = Comparison(name, tmp_path, device=device, epochs=3)
    recipe = trial.recipe(0, METHODS["vanilla"], trial.trial.student, {})
    assert (recipe.runtime.device, recipe.schedule.epochs) == (device, 3)
    assert recipe.schedule_for(trial.trial.teacher_schedule).epochs == 3
    assert trial.results.parent != Comparison(name, tmp_path).results.parent


def test_the_printed_table_is_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(compared(tmp_path, {"method": "teacher", "seed": 0, "accuracy": 0.75}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Teacher resnet14_2_a: 75.00%. Student resnet20_a."
    assert {line.count("|") for line in lines[2:]} == {8}


def test_memory_held_for_the_backward_pass_counts_storages_once_and_no_parameters() -> None:
    weight, x = torch.ones(4, 3, requires_grad=True), torch.ones(5, 3)
    rectified = 5 * 4 * 4  # what a ReLU keeps, float32
    assert held_by(lambda: (x @ weight.T).relu().sum(), [weight]) == x.nbytes + rectified
    assert held_by(lambda: (x @ weight.T + x @ weight.T).relu().sum(), [weight]) == x.nbytes + rectified


def test_memory_that_was_given_back_makes_room_for_other_memory() -> None:
    x = torch.ones(5, 3, requires_grad=True)

    def both() -> torch.Tensor:
        (x * x.exp()).sum().backward()  # holds x and exp(x), twice each, and is gone
        return x.sigmoid().sum()

    assert held_by(both, []) == 2 * x.nbytes
    assert held_by(lambda: x.sigmoid().sum(), []) == x.nbytes


@pytest.mark.parametrize("row", ["vanilla", "kd", "dafl", "cmi"])
def test_a_step_is_the_mean_over_a_cycle_and_holds_what_makes_the_images(row: str) -> None:
    settings = {**METHODS[row], **({"student_steps": 3, "width": 4} if row in NO_DATA else {})}
    settings |= {"synthesis_steps": 2, "synthesis_batch": 16} if row == "cmi" else {}
    device, data = Device(torch.device("cpu"), torch.float32, channels_last=False, compile=False), digits()
    teacher = frozen("resnet8_0.25_a", 2, 10)
    schedule = Schedule.model_validate({"epochs": 1, "batch_size": 16})
    stepper = Stepper(settings, "resnet8_0.125_a", [teacher], data, schedule, device)
    plain = Stepper(METHODS["vanilla"], "resnet8_0.125_a", [teacher], data, schedule, device)
    found = costs({row: stepper, "plain": plain}, rounds=2, warm_up=1)
    assert stepper.cycle == (3 if row in NO_DATA else 1)
    assert all(cost.seconds > 0 for cost in found.values())
    if isinstance(stepper.method, DataFree):
        assert int(stepper.method.synthesis.batches_made) == 3 * stepper.cycle + 1  # and one for what is held
        assert found[row].held > found["plain"].held
        assert found[row].helpers == sum(value.numel() for value in stepper.method.synthesis.parameters())
    else:
        assert found[row].helpers == 0
