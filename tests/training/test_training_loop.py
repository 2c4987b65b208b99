"""The one loop: what it learns from, what it leaves alone, and that a stop changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from cascade.errors import RecipeError
from cascade.figures import running_sums
from tests.training.loops import CPU, SCHEDULE, Interrupted, Listening, StopsAt, digits, method, plan, trained
from tests.training.networks import Says, same, state
from training.data import Batches
from training.device import Device
from training.evaluate import labels_of, logits_of
from training.log import Log
from training.loop import parameter_groups, seed_for, train
from training.methods.base import Networks, find
from training.schedule import learning_rate
from training.settings import Schedule

pytestmark = pytest.mark.train

PER_EPOCH = 4  # batches of 256 in 1,150 samples


def metrics(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[torch.Tensor], str]:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return state(trained(folder)), metrics(folder)


@pytest.mark.parametrize("checkpoint_s", [1e-9, 1e9], ids=["a checkpoint a batch", "a checkpoint an epoch"])
@pytest.mark.parametrize("batches", [1, 3, 4, 5, 11, 12])
def test_a_run_stopped_at_any_batch_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[list[torch.Tensor], str], batches: int, checkpoint_s: float
) -> None:
    step = plan(tmp_path, checkpoint_s)
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, batches), step)
    assert same(state(trained(tmp_path, step=step)), whole[0])
    assert metrics(tmp_path) == whole[1]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_stopped_between_the_metrics_and_the_checkpoint_repeats_no_line(
    tmp_path: Path, whole: tuple[list[torch.Tensor], str], epochs: int
) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, epochs=epochs))
    assert len(metrics(tmp_path).splitlines()) == epochs
    assert same(state(trained(tmp_path)), whole[0])
    assert metrics(tmp_path) == whole[1]


def test_a_run_stopped_again_and_again_ends_the_same(tmp_path: Path, whole: tuple[list[torch.Tensor], str]) -> None:
    for batches in range(1, 3 * PER_EPOCH + 1, 2):
        with pytest.raises(Interrupted):
            trained(tmp_path, StopsAt(tmp_path, batches))
    assert same(state(trained(tmp_path)), whole[0])
    assert metrics(tmp_path) == whole[1]


def test_a_checkpoint_saves_the_batches_before_it(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, 7))
    listening = Listening(method())
    trained(tmp_path, how=listening)
    assert len(listening.heard) == 3 * PER_EPOCH - 6  # the seventh was stopped before its checkpoint


def test_another_seed_learns_something_else(tmp_path: Path, whole: tuple[list[torch.Tensor], str]) -> None:
    other = replace(plan(tmp_path), seed=2)
    assert not same(state(trained(tmp_path, step=other)), whole[0])


def test_a_finished_step_is_not_trained_again(tmp_path: Path) -> None:
    trained(tmp_path)
    listening = Listening(method())
    trained(tmp_path, how=listening)
    assert not listening.heard


def test_an_epoch_shows_every_sample_once_but_for_those_that_fill_no_batch(tmp_path: Path) -> None:
    listening = Listening(method())
    trained(tmp_path, how=listening)
    assert len(listening.heard) == 3 * PER_EPOCH
    for epoch in range(3):
        shown = torch.cat([batch.index for batch in listening.heard[epoch * PER_EPOCH :][:PER_EPOCH]]).tolist()
        assert len(shown) == len(set(shown)) == 1024
        assert set(shown) <= set(digits().train.index.tolist())


def test_every_epoch_has_another_order(tmp_path: Path) -> None:
    listening = Listening(method())
    trained(tmp_path, how=listening)
    first, second = (
        torch.cat([batch.index for batch in listening.heard[start : start + PER_EPOCH]]) for start in (0, PER_EPOCH)
    )
    assert not torch.equal(first, second)


def test_no_two_batches_are_cropped_alike(tmp_path: Path) -> None:
    train_split = digits().train
    alike = replace(train_split, images=train_split.images[:1].expand_as(train_split.images).contiguous())
    listening = Listening(method())
    with Log(tmp_path, quiet=True) as log:
        train(plan(tmp_path), listening, replace(digits(), train=alike), CPU, log)
    assert len({batch.images.numpy().tobytes() for batch in listening.heard}) == len(listening.heard)


def test_held_out_samples_are_never_learned_from(tmp_path: Path) -> None:
    listening = Listening(method())
    trained(tmp_path, how=listening)
    shown = set(torch.cat([batch.index for batch in listening.heard]).tolist())
    assert not shown & set(digits().dv.index.tolist())


def test_teacher_and_earlier_stages_are_bit_for_bit_the_same_after_training(tmp_path: Path) -> None:
    how = method()
    before = state(how.nets.teacher, *how.nets.earlier)
    student = state(how.nets.student)
    trained(tmp_path, how=how)
    assert same(state(how.nets.teacher, *how.nets.earlier), before)
    assert not same(state(how.nets.student), student)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_sgd_with_the_schedules_learning_rate(tmp_path: Path, nesterov: bool) -> None:
    step = plan(tmp_path, batch_size=len(digits().train), momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    ours, theirs = method("vanilla"), method("vanilla").student.train()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    data = replace(digits(), augment=digits().augment.model_copy(update={"pad": 0}))
    with Log(tmp_path, quiet=True) as log:
        train(step, ours, data, CPU, log)
    batch = next(Batches(data.preprocess, CPU.where).plain(data.train, len(data.train)))
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = learning_rate(step.schedule, epoch / 3)
        optimizer.zero_grad()
        functional.cross_entropy(theirs(batch.images), batch.labels).backward()
        optimizer.step()
    for one, other in zip(ours.student.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path: Path, dtype: torch.dtype) -> None:
    plain: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "policy": "step", "milestones": ()}
    step = plan(tmp_path, epochs=1, batch_size=128, lr=0.5, clip=0.01, **plain)
    how = method()
    before = [parameter.detach().clone() for parameter in how.trainable()]
    with Log(tmp_path, quiet=True) as log:
        train(step, how, digits(), replace(CPU, dtype=dtype), log)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, how.trainable(), strict=True)])
    assert 0.5 * 0.01 < moved.norm().item() <= 8 * 0.5 * 0.01 * 1.001  # eight steps, each of this length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_learns_too_and_keeps_float32_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    how = method()
    with Log(tmp_path, quiet=True) as log:
        train(plan(tmp_path), how, digits(), Device(CPU.where, dtype, channels_last=True, compile=False), log)
    lines = [json.loads(line) for line in metrics(tmp_path).splitlines()]
    assert lines[-1]["loss/ce"] < lines[0]["loss/ce"]
    assert {parameter.dtype for parameter in how.student.parameters()} == {torch.float32}


def test_the_metrics_say_losses_and_the_accuracy_of_what_is_served(tmp_path: Path) -> None:
    how = trained(tmp_path)
    lines = [json.loads(line) for line in metrics(tmp_path).splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [("residual1", epoch) for epoch in (1, 2, 3)]
    assert set(lines[0]) == {"step", "epoch", "loss/ts", "loss/ce", "dv/accuracy"}
    nets = [*how.nets.earlier, how.deployable()]
    served = running_sums(logits_of(nets, digits().dv, Batches(digits().preprocess, CPU.where)))[-1]
    assert lines[-1]["dv/accuracy"] == (served.argmax(1) == labels_of(digits().dv)).mean()


def test_a_logged_loss_is_the_mean_over_the_epochs_batches(tmp_path: Path) -> None:
    kind, config = find({"name": "vanilla"})

    class Constant(kind):  # type: ignore[valid-type, misc]
        def losses(self, batch: object) -> dict[str, torch.Tensor]:
            self.calls = getattr(self, "calls", 0) + 1
            return {"ce": self.student(None).sum() * 0 + self.calls}

    says = Says(*[[0.0] * 10] * len(digits().dv))
    trained(tmp_path, step=plan(tmp_path, epochs=2), how=Constant(config, Networks(says), 1))
    lines = [json.loads(line) for line in metrics(tmp_path).splitlines()]
    assert [line["loss/ce"] for line in lines] == [(1 + 2 + 3 + 4) / 4, (5 + 6 + 7 + 8) / 4]


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"residual1: loss '\w+' is (nan|inf) in epoch 1, batch 2: lower schedule\.lr"
    ):
        trained(tmp_path, step=plan(tmp_path, lr=1e30))


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch_size 2000 is over the 1150 training samples"):
        trained(tmp_path, step=plan(tmp_path, batch_size=2000))


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path) -> None:
    three = replace(CPU, world=3)
    with pytest.raises(RecipeError, match="batch_size 256 does not divide among 3 processes"), Log(None) as log:
        train(plan(tmp_path), method(), digits(), three, log)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, 2), plan(tmp_path, run_id="another"))
    with pytest.raises(RecipeError, match="belongs to another recipe"):
        trained(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path, StopsAt(tmp_path, 2))
    path = tmp_path / "steps" / "residual1" / "checkpoint.pt"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "emptied": b"", "overwritten": b"hello"}[damage])
    with pytest.raises(RecipeError, match=r"checkpoint\.pt is not a checkpoint of this program: remove it"):
        trained(tmp_path)


def test_near_parts_give_unrelated_seeds() -> None:
    seeds = {seed_for(1, "student", epoch, batch) for epoch in range(20) for batch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(1, "student", 12) != seed_for(1, "student1", 2)


def test_the_tensorboard_files_hold_the_same_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "residual1")).Reload()
    lines = [json.loads(line) for line in metrics(tmp_path).splitlines()]
    found = [(event.step, event.value) for event in events.Scalars("dv/accuracy")]
    assert found == [(line["epoch"], pytest.approx(line["dv/accuracy"])) for line in lines]
    assert "speed/images_per_s" in events.Tags()["scalars"]


def test_progress_goes_to_stderr_unless_it_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path) as log:
        train(plan(tmp_path), method(), digits(), CPU, log)
        log.end("residual1", "done")
    loud = capsys.readouterr()
    trained(tmp_path / "quiet")
    quiet = capsys.readouterr()
    assert loud.out == quiet.out == quiet.err == ""
    assert "residual1: epoch 3: D_v " in loud.err
    assert "residual1: done" in loud.err


def test_processes_but_the_first_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Log(None) as log:
        log.begin("student", 4, 0)
        log.advance("student", 1)
        log.epoch("student", 1, {"dv/accuracy": 0.5}, 100.0)
    assert not list(tmp_path.iterdir())


def test_weight_decay_can_leave_vectors_alone() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    for decay_norms, kept in ((True, 0.5), (False, 1.0)):
        schedule = Schedule(lr=1.0, momentum=0.0, weight_decay=0.5, decay_norms=decay_norms)
        optimizer = torch.optim.SGD(parameter_groups([matrix, vector], schedule), lr=1.0, weight_decay=0.5)
        matrix.data.fill_(1)
        vector.data.fill_(1)
        matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
        optimizer.step()
        assert (matrix.data == 0.5).all()
        assert (vector.data == kept).all()


def test_the_default_schedule_of_these_tests_is_a_valid_one() -> None:
    assert plan(Path()).schedule.epochs == SCHEDULE["epochs"]
