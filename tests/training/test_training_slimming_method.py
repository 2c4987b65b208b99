"""The penalty before slimming: what it adds to any method's losses, and what it leaves as that method has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.tiny_run import document, train_tiny
from tests.training.loops import Interrupted, StopsAt, method, trained
from tests.training.networks import Says, batch, frozen, networks, same, state, training_set
from training import models
from training.checkpoint import digest, load_network, save_network
from training.methods.base import Method, Networks, find
from training.pruning.cut import kept_of
from training.published import FOLDER
from training.recipe import load, parse
from training.reuse import by_content

pytestmark = pytest.mark.train

PLAIN, RESNET = "jointrd_plain_none18_0.0625_cifar_dirac", "jointrd_resnet18_0.0625_cifar"
JOINT = {"name": "joint_rd", "teacher_mode": "joint", "teacher_model": RESNET}
INNER: list[dict[str, Any]] = [
    {"name": "vanilla"},
    {"name": "kd"},
    {"name": "fitnet"},
    {"name": "crd"},
    {"name": "simkd"},
    {"name": "simkd_joint"},
    {"name": "dml"},
    {"name": "cmi", "synthesis_steps": 1, "width": 2, "noise": 4, "negatives": 0},
    {"name": "joint_rd"},
    {"name": "joint_rd", "teacher_mode": "joint", "teacher_model": "resnet8_0.25_a"},
]


def made(settings: dict[str, Any], nets: Networks | None = None) -> Method:
    kind, config = find(settings)
    torch.manual_seed(3)
    return kind(config, nets or networks(), training_set())


def scales_of(net: nn.Module) -> list[nn.Parameter]:
    return [module.weight for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_penalty_is_the_sum_of_all_scales() -> None:
    net = models.build("resnet8_0.125_a", 4)
    count = sum(module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    losses = made({"name": "slimming", "l1": 0.01}, Networks(net)).losses(batch(0, 1))
    assert set(losses) == {"ce", "l1"}
    assert losses["l1"].item() == pytest.approx(0.01 * count)


def test_the_penalty_needs_batch_norms() -> None:
    how = made({"name": "slimming"}, Networks(models.build("torchvision:vgg11", 4, 32)))
    with pytest.raises(RecipeError, match="has none"):
        how.losses(batch(0, 1, side=32))


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: "-".join(inner))
def test_around_another_method_nothing_is_added_but_the_penalty(inner: dict[str, Any]) -> None:
    alone, around = made(inner), made({"name": "slimming", "of": inner})
    assert (around.turns(), around.own_turn()) == (alone.turns(), alone.own_turn())
    found: dict[str, Tensor] = {}
    for turn in range(alone.turns()):
        losses = []
        for how in (alone, around):
            torch.manual_seed(7)
            given = how.make_batch(lambda: batch(*[0, 1, 2, 3] * 4))
            losses.append(how.losses(replace(given, turn=turn)))
        own, found = losses
        penalty = found.pop("l1", None)
        assert (penalty is not None) == (turn == around.own_turn())
        assert {name: float(loss.detach()) for name, loss in found.items()} == {
            name: float(loss.detach()) for name, loss in own.items()
        }


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: "-".join(inner))
def test_around_another_method_all_else_is_as_it_has_it(inner: dict[str, Any]) -> None:
    alone, around = made(inner), made({"name": "slimming", "of": inner})
    assert around.state_dict().keys() == alone.state_dict().keys()
    assert [value.shape for value in around.trainable()] == [value.shape for value in alone.trainable()]
    assert [phase.name for phase in around.phases()] == [phase.name for phase in alone.phases()]
    assert around.optimizers().keys() == alone.optimizers().keys()
    assert around.other_heads().keys() == alone.other_heads().keys()
    assert around.deployed_name("a", ("b",)) == alone.deployed_name("a", ("b",))
    assert same(state(around.deployable()), state(alone.deployable()))
    assert around.pictures() is None


def test_the_penalty_moves_no_scale_that_is_frozen() -> None:
    how = made({"name": "slimming", "of": {"name": "simkd", "stages": 1}})
    learns = [scale for scale in scales_of(how.deployable()) if scale.requires_grad]
    assert 0 < len(learns) < len(scales_of(how.deployable()))
    count = sum(scale.numel() for scale in learns)
    assert how.losses(batch(*[0, 1, 2, 3] * 4))["l1"].item() == pytest.approx(1e-4 * count)


def test_a_teacher_that_learns_beside_it_is_not_drawn_to_zero() -> None:
    how = made({"name": "slimming", "l1": 1.0, "of": INNER[-1]})
    how.losses(batch(*[0, 1, 2, 3] * 4))
    how.losses(replace(batch(*[0, 1, 2, 3] * 4), turn=1))["l1"].backward()
    moved = {id(value) for value in how.parameters() if value.grad is not None}
    assert moved == {id(scale) for scale in scales_of(how.deployable())}


def test_a_run_around_another_method_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    settings = {"of": {"name": "crd"}}
    whole = trained(tmp_path / "whole", how=method("slimming", **settings))
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, batches=6), how=method("slimming", **settings))
    again = trained(tmp_path, how=method("slimming", **settings))
    assert same(state(again), state(whole))


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"name": "slimming"}, "whole network, not around slimming"),
        ({"name": "simkd_sequential"}, "whole network, not around simkd_sequential"),
        ({"name": "alchemy"}, "no method is called 'alchemy'"),
        ({"name": "kd", "colour": "red"}, "method 'kd': colour"),
    ],
)
def test_a_method_that_it_cannot_go_around_is_refused(inner: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"method 'slimming': of.*{message}"):
        find({"name": "slimming", "of": inner})


def test_the_other_methods_own_wishes_hold() -> None:
    with pytest.raises(RecipeError, match="'kd' needs a teacher"):
        made({"name": "slimming", "of": {"name": "kd"}}, Networks(Says([0.0, 0.0])))
    with pytest.raises(RecipeError, match="'vanilla' learns from one teacher"):
        made({"name": "slimming"}, replace(networks(), more_teachers=(frozen("resnet8_0.25_a", 2),)))


def test_what_the_other_method_counts_in_epochs_is_scaled_with_the_recipe() -> None:
    student = {**document()["student"], "method": {"name": "slimming", "of": {"name": "joint_rd"}}}
    scaled = parse(document(student=student), "tiny").scaled(0.1).student.method
    assert scaled == {"name": "slimming", "of": {"name": "joint_rd", "horizon": 6}}


def test_a_file_that_the_other_method_names_counts_by_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_network(path, frozen("resnet8_0.125_a", 7), "resnet8_0.125_a", 4)
    inner = {"name": "finetune_kd", "start": str(path)}
    found = by_content({"name": "slimming", "of": inner})
    assert found["of"]["start"] == digest(load_network(path)[1])
    assert by_content({"name": "slimming"}) == {"name": "slimming"}


def test_a_plain_student_of_a_resnet_is_slimmed(tmp_path: Path) -> None:
    student = {
        "model": PLAIN,
        "method": {"name": "slimming", "l1": 1e-3, "of": JOINT},
        "slim": {"rate": 0.4, "floor": 1},
    }
    quick = {"epochs": 1, "batch_size": 256, "lr": 0.05, "policy": "cosine", "clip": 1.0}
    run = train_tiny(tmp_path / "run", schedule=quick, teacher=None, student=student, residual=None)
    assert run.stages() == ["student_slim"]
    assert kept_of(run.network("student_slim")[1])


@pytest.mark.parametrize("row", ["slimmed30", "slimmed60"])
@pytest.mark.parametrize("depth", [34, 50])
def test_the_papers_plain_networks_are_slimmed_after_joint_rd(depth: int, row: str) -> None:
    recipe = load(FOLDER / "jointrd" / f"cifar100_plain{depth}.yaml", (), row)
    assert recipe.student.method == {"name": "slimming", "of": {"name": "joint_rd"}}
    assert recipe.student.slim is not None
    assert recipe.student.slim.rate == float(row[-2:]) / 100
