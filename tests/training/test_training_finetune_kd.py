"""A student that begins as a finished network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cascade.errors import RecipeError
from tests.tiny_run import train_tiny
from tests.training.networks import batch, frozen, same, state, training_set
from training import checkpoint, models
from training.methods.base import Networks, find
from training.methods.kd import kl
from training.reuse import by_content

pytestmark = pytest.mark.train

NAME = "resnet8_0.125_a"
SIMKD = {"bench": "simkd"}


def student(start: Path, classes: int = 4, name: str = NAME) -> torch.nn.Module:
    kind, config = find({"name": "finetune_kd", "start": str(start)})
    how = kind(config, Networks(models.build(name, classes), frozen("resnet8_0.25_a", 1, classes)), training_set())
    return how.deployable()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    checkpoint.save_network(path, frozen(NAME, 7), NAME, 4)
    return path


def test_a_student_begins_as_the_finished_network(finished: Path) -> None:
    assert same(state(student(finished)), state(frozen(NAME, 7)))


def test_of_a_network_with_other_classes_all_but_the_classifier_is_taken(finished: Path) -> None:
    found, given = student(finished, classes=6).state_dict(), frozen(NAME, 7).state_dict()
    assert found["classifier.weight"].shape[0] == 6
    assert all(torch.equal(value, given[name]) for name, value in found.items() if "classifier" not in name)


def test_another_network_is_refused(finished: Path) -> None:
    with pytest.raises(RecipeError, match="are not of this network"):
        student(finished, name="resnet8_0.25_a")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the network"):
        student(tmp_path / "none.safetensors")


def test_the_loss_is_the_appendixs() -> None:
    kind, config = find({"name": "finetune_kd"})
    nets = Networks(frozen(NAME, 7), frozen("resnet8_0.25_a", 1))
    given = batch(0, 1, 2, 3)
    found = kind(config, nets, training_set()).losses(given)
    assert nets.teacher is not None
    logits, target = nets.student(given.images), nets.teacher(given.images)
    assert float(found["ts"]) == pytest.approx(0.9 * float(kl(logits, target, 4.0)), rel=1e-5)
    assert float(found["ce"]) == pytest.approx(0.1 * float(torch.nn.functional.cross_entropy(logits, given.labels)))


def test_the_appendixs_numbers_are_those_of_a_benchmark_and_another_may_be_named() -> None:
    usual, same_numbers, other = (find({"name": "finetune_kd", **own})[1] for own in ({}, {"bench": "crd"}, SIMKD))
    assert usual == same_numbers
    assert other.model_dump(exclude={"bench"}) == {**usual.model_dump(exclude={"bench"}), "tau": 1.0, "ce": 1.0}


def test_a_start_counts_by_its_weights_and_not_by_its_place(finished: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    shutil.copy(finished, moved)
    checkpoint.save_network(other, frozen(NAME, 8), NAME, 4)
    one, same_weights, others = (by_content({"name": "finetune_kd", "start": str(p)}) for p in (finished, moved, other))
    assert one == same_weights
    assert one != others
    assert by_content({"name": "finetune_kd", "t": 2}) == {"name": "finetune_kd", "t": 2}


def test_a_student_is_taken_from_another_run_if_it_began_with_the_same_weights(tmp_path: Path) -> None:
    quick = {"epochs": 1, "batch_size": 256, "lr": 0.1, "policy": "cosine"}
    for place, seed in (("one", 7), ("same", 7), ("other", 8)):
        checkpoint.save_network(
            tmp_path / f"{place}.safetensors", frozen("resnet8_0.25_a", seed, 10), "resnet8_0.25_a", 10
        )

    def run(place: str, *reuse: Path) -> list[str]:
        method = {"name": "finetune_kd", "start": str(tmp_path / f"{place}.safetensors")}
        student = {"model": "resnet8_0.25_a", "method": method}
        train_tiny(tmp_path / place, reuse, schedule=quick, student=student, residual=None)
        metrics = tmp_path / place / "metrics.jsonl"
        return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []

    assert run("one") == ["teacher", "student"]
    assert run("same", tmp_path / "one") == []
    assert run("other", tmp_path / "one") == ["student"]
