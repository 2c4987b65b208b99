"""JointRD: who gets a gradient from which path, what the teacher keeps, and what the terms weigh."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.errors import RecipeError
from tests.training.loops import CPU, Interrupted, StopsAt, digits, plan, seen, trained
from tests.training.networks import Says, batch, frozen, same, state, training_set
from training import models
from training.methods.base import Batch, Method, Networks, find
from training.methods.joint_rd import JointRD, finish, paths_of, penalty
from training.methods.kd import kl
from training.methods.margin_kd import margins
from training.models.contract import Network
from training.models.shapes import without_numbers
from training.published import FOLDER
from training.recipe import load

pytestmark = pytest.mark.train

RECIPES = [FOLDER / "jointrd" / f"{name}.yaml" for name in ("digits", *(f"cifar100_plain{d}" for d in (18, 34, 50)))]
STUDENT, TEACHER = "jointrd_plain_keepds18_0.125_cifar", "jointrd_resnet18_0.125_cifar"
LABELS = [0, 1, 2, 3] * 2
JOINT: dict[str, Any] = {"teacher_mode": "joint", "teacher_model": TEACHER}


def joint_rd(
    teacher: nn.Module | None = None, classes: int = 4, student: str = STUDENT, *more: nn.Module, **settings: Any
) -> JointRD:
    kind, config = find({"name": "joint_rd", **settings})
    torch.manual_seed(5)
    net = CPU.place(models.build(student, classes))
    made = kind(config, Networks(net, teacher, more_teachers=more), training_set())
    assert isinstance(made, JointRD)
    return made.train()


def gradients(how: JointRD, *names: str, epoch: int = 0) -> list[bool]:
    """Whether stem, stages 1 to 4 and classifier of the student get any from some losses."""
    student = how.nets.student
    assert isinstance(student, Network)
    student.zero_grad()
    losses = how.losses(at(epoch))
    torch.stack([losses[name] for name in names]).sum().backward()
    parts = [student.stem, *student.stages, student.classifier]
    return [any(p.grad is not None and bool(p.grad.any()) for p in part.parameters()) for part in parts]


def at(epoch: int, turn: int = 0) -> Batch:
    return replace(batch(*LABELS), epoch=epoch, turn=turn)


def both_turns(how: JointRD, epoch: int = 0) -> dict[str, Tensor]:
    """The losses of a batch beside a teacher that learns, before anybody has moved."""
    return how.losses(at(epoch)) | how.losses(at(epoch, turn=1))


def plain(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.mark.parametrize("term", ["ce", "feature"])
@pytest.mark.parametrize("path", [1, 2, 3])
def test_a_path_reaches_the_students_stages_before_its_cut_and_none_after(path: int, term: str) -> None:
    how = joint_rd(frozen(TEACHER, 1), paths=[path])
    reached = gradients(how, f"{term}_{path}")
    assert reached == [True, *([True] * path), *([False] * (4 - path)), False]


def test_with_path_1_alone_the_students_other_stages_learn_from_the_student_alone() -> None:
    how = joint_rd(frozen(TEACHER, 1), paths=[1])
    assert set(how.losses(at(0))) == {"ce", "feature", "ce_1", "feature_1"}
    assert gradients(how, "ce") == [True] * 6


def test_a_path_is_the_students_stages_then_the_teachers() -> None:
    teacher = frozen(TEACHER, 1)
    how = joint_rd(teacher)
    student = how.nets.student.eval()
    assert isinstance(student, Network)
    assert isinstance(teacher, Network)
    x = at(0).images
    for path in (1, 2, 3):
        last, logits = how.through_teacher(student.run_to(x, path), path)
        assert torch.equal(logits, teacher.run_from(student.run_to(x, path), path))
        assert torch.equal(logits, teacher.classify(teacher.head(last)))


def test_a_path_gives_a_map_the_gradient_that_the_teacher_would_and_the_teacher_none() -> None:
    teacher = frozen(TEACHER, 1).requires_grad_()
    how = joint_rd(teacher)
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    how.through_teacher(x, 1)[1].square().sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    found, x.grad = x.grad, None
    assert isinstance(teacher, Network)
    teacher.run_from(x, 1).square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, found)


def test_a_frozen_teacher_is_bit_for_bit_the_same_after_an_epoch(tmp_path: Path) -> None:
    teacher = frozen(TEACHER, 1, 10)
    before = state(teacher)
    how = joint_rd(teacher, 10)
    student = state(how.nets.student)
    trained(tmp_path, how=how, step=plan(tmp_path, epochs=1))
    assert same(state(teacher), before)
    assert not any(module.training for module in teacher.modules())
    assert not same(state(how.nets.student), student)


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_teacher_that_learns_moves_as_it_would_have_alone(tmp_path: Path, clip: float) -> None:
    how = joint_rd(None, 10, **JOINT)
    assert how.partner is not None
    CPU.place(how)
    alone = copy.deepcopy(how.partner)
    step = plan(tmp_path / "joint", epochs=2, weight_decay=1e-3, clip=clip)
    trained(tmp_path / "joint", how=how, step=step)
    kind, config = find({"name": "vanilla"})
    step = plan(tmp_path / "alone", epochs=2, weight_decay=1e-3, clip=clip)
    trained(tmp_path / "alone", how=kind(config, Networks(alone), seen(256)), step=step)
    assert same(state(how.partner), state(alone))


def test_the_paths_use_the_running_statistics_of_a_teacher_that_learns_and_do_not_move_them() -> None:
    how = joint_rd(**JOINT)
    assert how.partner is not None
    alone = copy.deepcopy(how.partner).train()
    both_turns(how)
    alone(at(0).images)
    assert same(state(how.partner), state(alone))
    assert not how.partner.training


def test_the_teachers_own_loss_alone_gives_it_a_gradient() -> None:
    how = joint_rd(**JOINT)
    assert how.partner is not None
    losses = both_turns(how)
    own = losses.pop("teacher_ce")
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is None for parameter in how.partner.parameters())
    own.backward()
    assert all(parameter.grad is not None for parameter in how.partner.parameters())


def test_a_teacher_that_learns_moves_first_and_its_turn_leaves_the_student_alone() -> None:
    how = joint_rd(**JOINT)
    own = how.losses(at(0))
    assert set(own) == {"teacher_ce"}
    own["teacher_ce"].backward()
    assert all(parameter.grad is None for parameter in how.nets.student.parameters())
    assert how.turns() == 2
    assert joint_rd(frozen(TEACHER, 1)).turns() == 1


def test_the_paths_run_through_a_teacher_that_has_moved_and_are_held_against_what_it_said_before() -> None:
    how = joint_rd(lam=1.0, path_kd=True, tau=1.0, **JOINT)
    before = plain(both_turns(how))
    how.losses(at(0))
    assert how.partner is not None
    assert how.taught is not None
    said = [value.clone() for value in how.taught]
    how.partner.classifier.bias.data += torch.arange(4.0)
    moved = plain(how.losses(at(0, turn=1)))
    assert same(said, list(how.taught))
    assert moved["ce_3"] != before["ce_3"]
    assert moved["ce"] == pytest.approx(before["ce"])


def test_a_joint_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, halves = (joint_rd(None, 10, **JOINT) for _ in range(2))
    trained(tmp_path / "whole", how=CPU.place(whole), step=plan(tmp_path / "whole", epochs=2))  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, batches=6), plan(tmp_path, epochs=2), CPU.place(halves))  # type: ignore[arg-type]
    again = joint_rd(None, 10, **JOINT)
    trained(tmp_path, how=CPU.place(again), step=plan(tmp_path, epochs=2))  # type: ignore[arg-type]
    assert same(state(again), state(whole))


def test_margins_follow_a_teacher_that_learns_once_an_epoch() -> None:
    how = joint_rd(**JOINT)
    (norm,) = how.norm
    how.losses(at(0))
    norm.bias.data += 1
    margin = how.distances["s"].margin
    assert isinstance(margin, Tensor)
    stale = margin.clone()
    how.losses(at(0))
    assert torch.equal(margin, stale)
    how.losses(at(1))
    assert torch.equal(margin, margins(norm))
    assert not torch.equal(margin, stale)


@pytest.mark.parametrize("floor", [0.5, 5e-3])
def test_the_paths_weight_falls_along_a_cosine_to_its_floor(floor: float) -> None:
    found = [penalty(epoch, floor, 60) for epoch in (0, 30, 60, 61, 199)]
    assert found == pytest.approx([1, (1 + floor) / 2, floor, floor, floor])


def test_a_horizon_of_zero_is_a_constant_factor() -> None:
    assert [penalty(epoch, 0.5, 0) for epoch in (0, 1, 100)] == [0.5] * 3


def test_terms_are_quarters_and_only_the_paths_fade() -> None:
    how = joint_rd(frozen(TEACHER, 1), lam=1e-3).eval()
    early, late = plain(how.losses(at(0))), plain(how.losses(at(60)))
    with torch.no_grad():
        logits = how.nets.student(at(0).images)
    assert early["ce"] == pytest.approx(0.25 * float(functional.cross_entropy(logits, at(0).labels)), rel=1e-5)
    for name, loss in early.items():
        assert late[name] == pytest.approx(loss * (0.5 if name[-1] in "123" else 1), rel=1e-5)


def test_lam_weighs_the_distances_alone() -> None:
    one, two = (plain(joint_rd(frozen(TEACHER, 1), lam=lam).losses(at(0))) for lam in (1e-3, 2e-3))
    for name, loss in one.items():
        assert two[name] == pytest.approx(loss * (2 if name.startswith("feature") else 1))


def test_the_recipes_teacher_judges_the_student_where_kd_is_asked_for() -> None:
    teacher = frozen(TEACHER, 1)
    how = joint_rd(teacher, kd_mode="during").eval()
    found = plain(how.losses(at(0)))
    with torch.no_grad():
        logits, target = how.nets.student(at(0).images), teacher(at(0).images)
        expected = 0.9 * kl(logits, target, 4.0) + 0.1 * functional.cross_entropy(logits, at(0).labels)
    assert found["ce"] == pytest.approx(0.25 * float(expected), rel=1e-4)
    assert found["ce_1"] == pytest.approx(plain(joint_rd(teacher).eval().losses(at(0)))["ce_1"], rel=1e-5)


def test_beside_a_teacher_that_learns_kd_still_asks_the_recipes_teacher() -> None:
    given = Says(*[[0.0, 3.0, 0.0, 0.0]] * 8)
    how = joint_rd(given, kd_mode="during", **JOINT).eval()
    found = plain(both_turns(how))
    with torch.no_grad():
        logits = how.nets.student(at(0).images)
        expected = 0.9 * kl(logits, given.logits, 4.0) + 0.1 * functional.cross_entropy(logits, at(0).labels)
    assert found["ce"] == pytest.approx(0.25 * float(expected), rel=1e-4)


def test_of_two_teachers_the_paths_run_through_the_first_and_the_second_judges_the_student() -> None:
    first, second = frozen(TEACHER, 1), Says(*[[0.0, 3.0, 0.0, 0.0]] * 8)
    how = joint_rd(first, 4, STUDENT, second, kd_mode="during").eval()
    found, without = plain(how.losses(at(0))), plain(joint_rd(first).eval().losses(at(0)))
    with torch.no_grad():
        logits = how.nets.student(at(0).images)
        expected = 0.9 * kl(logits, second.logits, 4.0) + 0.1 * functional.cross_entropy(logits, at(0).labels)
    assert found.pop("ce") == pytest.approx(0.25 * float(expected), rel=1e-4)
    assert found == pytest.approx({name: loss for name, loss in without.items() if name != "ce"})


@pytest.mark.parametrize(
    ("count", "settings"), [(1, {}), (1, {"kd_mode": "during", **JOINT}), (2, {"kd_mode": "during"})]
)
def test_a_second_teacher_that_would_judge_nothing_and_a_third_are_refused(
    count: int, settings: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=rf"the recipe has {count + 1}: say so, or give one teacher"):
        joint_rd(frozen(TEACHER, 1), 4, STUDENT, *[frozen(TEACHER, 2)] * count, **settings)


@pytest.mark.parametrize("depth", [18, 34])
def test_where_resnet_50_judges_the_paths_run_through_a_frozen_teacher_of_the_students_depth(depth: int) -> None:
    recipe = load(FOLDER / "jointrd" / f"cifar100_plain{depth}_kd.yaml")
    assert [teacher.model for teacher in recipe.teachers] == [f"jointrd_resnet{depth}_cifar", "jointrd_resnet50_cifar"]
    assert recipe.student.method == {"name": "joint_rd", "kd_mode": "during"}


def test_path_kd_lets_the_teacher_judge_its_paths() -> None:
    teacher = frozen(TEACHER, 1)
    how = joint_rd(teacher, path_kd=True).eval()
    found = plain(how.losses(at(0)))
    with torch.no_grad():
        assert isinstance(how.nets.student, Network)
        logits = how.through_teacher(how.nets.student.run_to(at(0).images, 2), 2)[1]
        target = teacher(at(0).images)
        expected = 0.9 * kl(logits, target, 4.0) + 0.1 * functional.cross_entropy(logits, at(0).labels)
    assert found["ce_2"] == pytest.approx(0.25 * float(expected), rel=1e-4)


def test_a_student_of_other_widths_crosses_over_by_connectors_and_one_of_the_same_by_nothing() -> None:
    same_width = joint_rd(frozen(TEACHER, 1))
    narrow = joint_rd(frozen("jointrd_resnet18_0.25_cifar", 1))
    assert all(isinstance(bridge, nn.Identity) for bridge in same_width.bridges.values())
    assert all(isinstance(bridge, nn.Sequential) for bridge in narrow.bridges.values())
    assert gradients(narrow, "ce_1") == [True, True, False, False, False, False]


def test_a_teacher_of_another_stem_is_refused() -> None:
    with pytest.raises(RecipeError, match="under the same stem"):
        joint_rd(frozen("jointrd_resnet18_0.125_imagenet", 1))


@pytest.mark.parametrize("paths", [(0,), (4,), (1, 1), (1, 2, 9)])
def test_paths_that_are_not_there_are_refused(paths: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=r"some of \[1, 2, 3\]"):
        paths_of(paths, 4)


@pytest.mark.parametrize("settings", [{"teacher_mode": "joint"}, {"teacher_model": TEACHER}])
def test_a_joint_teacher_has_a_name_and_a_frozen_one_none(settings: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="joint needs the teacher_model"):
        find({"name": "joint_rd", **settings})


def test_kd_without_a_teacher_in_the_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="kd_mode 'during' needs a teacher"):
        joint_rd(kd_mode="during", **JOINT)


def test_finishing_a_network_from_any_stage_gives_its_own_logits() -> None:
    net = frozen("resnet8_0.25_a", 1)
    assert isinstance(net, Network)
    x = at(0).images
    for stage in range(len(net.stages)):
        last, logits = finish(net, net.run_to(x, stage), stage)
        assert torch.equal(logits, net(x))
        assert torch.equal(torch.relu(last), net.pre_pool(x))
        assert (last < 0).any()


def test_a_method_is_told_its_epoch(tmp_path: Path) -> None:
    class Listens(Method):
        name = "listens"
        needs_teacher = False

        def losses(self, batch: Any) -> dict[str, Tensor]:
            heard.append(batch.epoch)
            return {"ce": functional.cross_entropy(self.student(batch.images), batch.labels)}

    heard: list[int] = []
    how = Listens(Listens.Config(), Networks(models.build("resnet8_0.125_a", 10)), seen(256))
    trained(tmp_path, how=how, step=plan(tmp_path, epochs=2))
    batches = len(digits().train) // 256
    assert heard == [0] * batches + [1] * batches


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_published_recipe_names_a_plain_student_and_a_teacher_that_it_fits(path: Path) -> None:
    recipe = load(path)
    assert recipe.teacher is not None
    with_shapes = [
        without_numbers(functools.partial(models.build, str(name), 10))
        for name in (recipe.teacher.model, recipe.student.model)
    ]
    one, other = (net.features(torch.zeros(1, 3, 32, 32, device="meta")).maps for net in with_shapes)  # type: ignore[operator]
    assert [x.shape for x in one] == [x.shape for x in other]
    assert find(recipe.student.method)[0] is JointRD
    for config in (recipe.teacher, recipe.student, recipe.residual):
        assert config is None or find(config.method or {})
