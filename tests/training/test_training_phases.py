"""Methods that train something before: what moves in which phase, and that a stopped run goes on in any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training import definitions
from tests.training.loops import Interrupted, StopsAt, method, plan, trained
from tests.training.networks import batch, frozen, networks, same, state, training_set
from training import models
from training.loop import before
from training.methods.ab import Boundaries
from training.methods.base import Method, Networks, Phase, find
from training.methods.ft import FT
from training.models import Network

pytestmark = pytest.mark.train

LABELS = [0, 1, 2, 3] * 4


def first_phase(name: str, nets: Networks | None = None) -> Method:
    kind, config = find({"name": name})
    return kind(config, nets or networks(), training_set()).phases()[0].method


def one_step(how: Method) -> None:
    optimizer = torch.optim.SGD(how.trainable(), lr=0.1)
    torch.stack(list(how.train().losses(batch(*LABELS)).values())).sum().backward()
    optimizer.step()


def test_most_methods_have_no_phase_before() -> None:
    assert method("at").phases() == ()


def test_a_phase_is_a_share_of_the_schedule_at_a_constant_rate(tmp_path: Path) -> None:
    step = plan(tmp_path, epochs=240, lr=0.05)
    found = before(step, Phase("init", method("ab"), 30 / 240))
    assert (found.schedule.epochs, found.schedule.lr, found.schedule.policy, found.schedule.milestones) == (
        30,
        0.05,
        "step",
        (),
    )
    assert (found.name, found.folder) == ("residual1.init", step.folder / "init")
    assert found.schedule.weight_decay == step.schedule.weight_decay


def test_a_phase_has_an_epoch_at_least_and_may_have_a_rate_of_its_own(tmp_path: Path) -> None:
    found = before(plan(tmp_path, epochs=2), Phase("init", method("ft"), 30 / 240, 0.01))
    assert (found.schedule.epochs, found.schedule.lr) == (1, 0.01)


def test_a_phase_ends_with_its_last_epoch_whichever_is_best_of_what_follows(tmp_path: Path) -> None:
    found = before(plan(tmp_path, epochs=2, select="dv_loss"), Phase("init", method("ab"), 0.5))
    assert found.schedule.select == "last"


def test_the_benchmarks_phases_are_an_eighth_of_what_follows() -> None:
    phases = [method(name).phases()[0] for name in ("ab", "ft", "fsp")]
    assert [(phase.name, phase.share) for phase in phases] == [("init", 0.125)] * 3
    assert [phase.lr for phase in phases] == [None, 0.01, None]


def test_activation_boundaries_weigh_the_stages_by_a_quarter_a_half_and_one() -> None:
    student, teacher = models.build("resnet8_0.25_a", 4).eval(), frozen("resnet8_0.25_a", 1)
    how = first_phase("ab", Networks(student, teacher)).eval()
    assert isinstance(how, Boundaries)
    assert all(isinstance(connector, nn.Identity) for connector in how.connectors)
    assert isinstance(student, Network)
    assert isinstance(teacher, Network)
    images = batch(*LABELS).images
    pairs = zip(student.features(images, preact=True).maps, teacher.features(images, preact=True).maps, strict=True)
    stages = [definitions.ab(s.detach().double().numpy(), t.double().numpy()) for s, t in list(pairs)[1:-1]]
    expected = 3 / 1000 * (stages[0] / 4 + stages[1] / 2 + stages[2])
    assert how.losses(batch(*LABELS))["ab"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_before_the_labels_come_all_but_the_classifier_moves(name: str) -> None:
    how = first_phase(name)
    student = how.student
    assert isinstance(student, Network)
    start = {part: state(module) for part, module in student.named_children()}
    one_step(how)
    assert not student.training
    assert student.stem.training
    assert student.stages.training
    assert [part for part, module in student.named_children() if not same(state(module), start[part])] == [
        "stem",
        "stages",
    ]


def test_before_the_labels_come_a_last_batch_norm_is_as_it_was_and_only_read() -> None:
    student = models.build("wrn_10_1_preact", 4)
    how = first_phase("ab", Networks(student, frozen("wrn_10_1_preact", 1)))
    assert isinstance(student, Network)
    before = state(student.head)
    one_step(how)
    assert same(state(student.head), before)
    assert not any(module.training for module in student.head.modules())
    assert not {id(value) for value in student.head.parameters()} & {id(value) for value in how.trainable()}


def test_the_labels_do_not_matter_before_they_come() -> None:
    for name in ("ab", "ft", "fsp"):
        how = first_phase(name).eval()
        (one,), (other,) = (how.losses(batch(*labels)).values() for labels in (LABELS, LABELS[::-1]))
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_kd_may_stand_beside_the_labels_once_they_come(name: str) -> None:
    kind, config = find({"name": name, "kd": 1})
    found = kind(config, networks(), training_set()).losses(batch(*LABELS))
    assert set(found) == {"ce", "kd"}
    assert found["kd"] > 0


def test_connectors_are_no_part_of_what_follows() -> None:
    assert {name.partition(".")[0] for name in method("ab").state_dict()} == {"student"}


def test_the_paraphraser_learns_first_and_is_still_when_the_student_learns() -> None:
    kind, config = find({"name": "ft"})
    how = kind(config, networks(), training_set())
    assert isinstance(how, FT)
    student, paraphraser = state(how.student), state(how.paraphraser)
    one_step(how.phases()[0].method)
    assert same(state(how.student), student)
    assert not same(state(how.paraphraser), paraphraser)
    paraphraser = state(how.paraphraser)
    one_step(how)
    assert same(state(how.paraphraser), paraphraser)
    assert not same(state(how.student), student)


@pytest.mark.parametrize("batches", [2, 5])
@pytest.mark.parametrize("name", ["ab", "ft", "fsp"])
def test_a_run_that_was_stopped_in_any_phase_ends_with_the_same_weights(
    tmp_path: Path, name: str, batches: int
) -> None:
    whole = trained(tmp_path / "whole", how=method(name))
    with pytest.raises(Interrupted):
        trained(tmp_path / "stopped", StopsAt(tmp_path / "stopped", batches), how=method(name))
    again = trained(tmp_path / "stopped", how=method(name))
    assert same(state(again), state(whole))
    lines = [(tmp_path / folder / "metrics.jsonl").read_bytes() for folder in ("stopped", "whole")]
    assert lines[0] == lines[1]


def test_a_step_that_has_begun_does_not_repeat_its_phases(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, 5), how=method("ab"))
    (tmp_path / "steps" / "residual1" / "init" / "checkpoint.pt").unlink()
    trained(tmp_path, StopsAt(tmp_path, 10**9), how=method("ab"))
    assert not (tmp_path / "steps" / "residual1" / "init" / "checkpoint.pt").exists()
