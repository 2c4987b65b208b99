"""Stored logits, and figures that follow from them and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cascade.errors import RecipeError
from cascade.figures import Sample, energy_threshold, mean_energy, running_sums
from cascade.manifest import Figures
from cascade.replay import replay
from tests.tiny_run import tiny_recipe, train_tiny
from training.__main__ import main
from training.data import Batches, load
from training.evaluate import Evaluation, evaluate, labels_of, logits_of, reference, threshold_for
from training.models.count import macs
from training.run import Run, create
from training.settings import ExitConfig
from training.table import accuracy_table

pytestmark = pytest.mark.train

STAGES = ["student", "residual1", "residual2"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evaluation(tiny_run: Run) -> Evaluation:
    return evaluate(tiny_run, sweep_thresholds=True, quiet=True)


def stored(run: Run, split: str) -> dict[str, Any]:
    with np.load(run.folder / "logits" / f"{split}.npz") as file:
        return dict(file)


def figures_of(evaluation: Evaluation, split: str) -> Figures:
    return evaluation.dv if split == "dv" else evaluation.test


@pytest.mark.parametrize("split", ["dv", "test"])
def test_every_networks_logits_are_stored_for_every_sample(tiny_run: Run, evaluation: Evaluation, split: str) -> None:
    data = load(tiny_run.recipe.data, quiet=True)
    part = data.dv if split == "dv" else data.test
    arrays = stored(tiny_run, split)
    assert set(arrays) == {"labels", "index", "teacher", *STAGES}
    assert arrays["index"].tolist() == part.index.tolist()
    assert arrays["labels"].tolist() == part.labels[part.index].tolist()
    assert {arrays[name].shape for name in ("teacher", *STAGES)} == {(len(part), 10)}


@pytest.mark.parametrize("split", ["dv", "test"])
def test_stored_logits_replay_to_the_figures(tiny_run: Run, evaluation: Evaluation, split: str) -> None:
    arrays, figures = stored(tiny_run, split), figures_of(evaluation, split)
    found = replay([arrays[name] for name in STAGES], evaluation.threshold)
    assert figures.exits == tuple(found.shares(3))
    assert figures.adaptive.accuracy == found.accuracy(arrays["labels"])
    assert figures.adaptive.macs == found.mean_cost([macs(tiny_run.network(name)[1], 8) for name in STAGES])


@pytest.mark.parametrize("split", ["dv", "test"])
def test_each_sum_and_the_teacher_have_the_accuracy_of_their_logits(
    tiny_run: Run, evaluation: Evaluation, split: str
) -> None:
    arrays, figures = stored(tiny_run, split), figures_of(evaluation, split)
    sums = running_sums([arrays[name] for name in STAGES])
    assert [network.accuracy for network in figures.sums] == [
        (total.argmax(1) == arrays["labels"]).mean() for total in sums
    ]
    assert figures.teacher is not None
    assert figures.teacher.accuracy == (arrays["teacher"].argmax(1) == arrays["labels"]).mean()
    assert figures.teacher.energy == mean_energy(arrays["teacher"])


def test_the_student_and_the_teacher_it_had_are_compared_class_by_class(tiny_run: Run, evaluation: Evaluation) -> None:
    arrays = stored(tiny_run, "test")
    assert evaluation.agreement == (arrays["teacher"].argmax(1) == arrays["student"].argmax(1)).mean()
    shown = CliRunner().invoke(main, ["evaluate", str(tiny_run.folder), "--sweep", "--quiet"]).stdout
    assert f"student and teacher agree on {evaluation.agreement:.2%} of the test images" in shown


def test_a_student_without_a_teacher_agrees_with_nobody(tmp_path: Path) -> None:
    student = {"model": "resnet8_0.125_a", "method": {"name": "vanilla"}}
    quick = {"epochs": 1, "batch_size": 256, "lr": 0.05, "policy": "cosine"}
    run = train_tiny(tmp_path / "run", teacher=None, student=student, residual=None, schedule=quick)
    assert evaluate(run, quiet=True).agreement is None
    assert "agree" not in CliRunner().invoke(main, ["evaluate", str(run.folder), "--quiet"]).stdout


def test_logits_are_those_of_one_image_at_a_time_without_augmentation(tiny_run: Run, evaluation: Evaluation) -> None:
    data = load(tiny_run.recipe.data, quiet=True)
    net = tiny_run.network("residual1")[1]
    alone = [net(batch.images).detach() for batch in Batches(data.preprocess, CPU).plain(data.test, 1)]
    assert np.abs(torch.cat(alone).numpy() - stored(tiny_run, "test")["residual1"]).max() < 1e-4


def test_a_network_left_in_training_mode_is_still_evaluated(tiny_run: Run) -> None:
    data = load(tiny_run.recipe.data, quiet=True)
    net = tiny_run.network("student")[1]
    batches = Batches(data.preprocess, CPU)
    expected = logits_of([net], data.dv, batches)[0]
    assert np.array_equal(logits_of([net.train()], data.dv, batches)[0], expected)


def test_the_threshold_is_the_recipes_rule_on_dv(tiny_run: Run, evaluation: Evaluation) -> None:
    arrays = stored(tiny_run, "dv")
    total = running_sums([arrays[name] for name in STAGES])[-1]
    assert evaluation.threshold == energy_threshold(total, tiny_run.recipe.exit.rho)


def test_the_figures_are_kept_in_the_run(tiny_run: Run, evaluation: Evaluation) -> None:
    document = json.loads((tiny_run.folder / "evaluation.json").read_text())
    assert Evaluation.model_validate(document) == evaluation


def test_evaluating_twice_gives_the_same(tiny_run: Run, evaluation: Evaluation) -> None:
    before = stored(tiny_run, "test")
    assert evaluate(tiny_run, sweep_thresholds=True, quiet=True) == evaluation
    assert all(np.array_equal(array, before[name]) for name, array in stored(tiny_run, "test").items())


def test_a_sweep_goes_from_a_twentieth_to_one(evaluation: Evaluation) -> None:
    thresholds = [row.threshold for row in evaluation.test_sweep]
    assert thresholds == [step / 20 for step in range(1, 21)]
    assert evaluation.test_sweep[-1].accuracy == evaluation.test.sums[-1].accuracy
    assert evaluation.test_sweep[-1].macs == evaluation.test.sums[-1].macs
    left_at_once = [row.exits[0] for row in evaluation.dv_sweep]
    assert left_at_once == sorted(left_at_once, reverse=True)


def test_without_a_sweep_there_is_none(tiny_run: Run, evaluation: Evaluation) -> None:
    assert evaluate(tiny_run, quiet=True).test_sweep == ()
    evaluate(tiny_run, sweep_thresholds=True, quiet=True)


def test_the_costs_are_multiply_accumulates_added_up(tiny_run: Run, evaluation: Evaluation) -> None:
    costs = [macs(tiny_run.network(name)[1], 8) for name in STAGES]
    assert [network.macs for network in evaluation.test.sums] == [costs[0], sum(costs[:2]), sum(costs)]
    assert evaluation.test.teacher is not None
    assert evaluation.test.teacher.macs == macs(tiny_run.network("teacher")[1], 8)


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path, tiny_recipe())
    with pytest.raises(RecipeError, match="has not finished"):
        evaluate(run, quiet=True)


def sample(*, teacher: bool = True) -> Sample:
    random = np.random.default_rng(0)
    logits = [random.normal(size=(20, 4)).astype(np.float32) * 3 for _ in range(3)]
    return Sample("dv", np.zeros(20, np.int64), logits[:2], [1, 1], logits[2] if teacher else None)


def test_the_reference_is_the_whole_cascade_or_the_teacher() -> None:
    dv = sample()
    assert np.array_equal(reference(ExitConfig(), dv), dv.stage_logits[0] + dv.stage_logits[1])
    assert reference(ExitConfig(reference="T"), dv) is dv.teacher_logits


def test_a_reference_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"exit\.reference is T, and the run has no teacher"):
        reference(ExitConfig(reference="T"), sample(teacher=False))


@pytest.mark.parametrize("name", ["S_n", "T"])
def test_the_threshold_is_rho_times_the_references_energy(name: str) -> None:
    rule = ExitConfig.model_validate({"reference": name, "rho": 0.8})
    assert threshold_for(rule, sample()) == pytest.approx(0.8 * mean_energy(reference(rule, sample())))


def test_a_threshold_that_is_given_needs_no_reference() -> None:
    assert threshold_for(ExitConfig(threshold=0.7, reference="T"), sample(teacher=False)) == 0.7


def test_labels_come_in_the_order_of_the_split(tiny_run: Run) -> None:
    data = load(tiny_run.recipe.data, quiet=True)
    assert labels_of(data.dv).tolist() == [int(data.dv.labels[place]) for place in data.dv.index]


def test_tables_show_both_splits_and_their_sweeps(evaluation: Evaluation) -> None:
    titles = [str(table.title) for table in accuracy_table(evaluation)]
    assert [title.split(",")[0] for title in titles] == ["D_v", "D_v", "test", "test"]
    assert [table.row_count for table in accuracy_table(evaluation)] == [5, 20, 5, 20]
    assert len(accuracy_table(evaluation.model_copy(update={"dv_sweep": (), "test_sweep": ()}))) == 2
