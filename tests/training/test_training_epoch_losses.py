"""An epoch's losses: read seldom, added as if after every batch, and stopped by the first that is no number."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade.errors import RecipeError
from tests.training.loops import CPU, method, plan, trained
from training import checkpoint
from training.losses import Losses
from training.methods.base import Batch, Method, Networks, find

pytestmark = pytest.mark.train

NUMBERS = [0.1, 0.2, 1e-9, 3e7, 0.3, 0.7]


def values(*numbers: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize("read_s", [0, math.inf], ids=["after every batch", "at the end"])
def test_sums_are_those_of_float64_batch_by_batch_however_often_they_are_read(read_s: float) -> None:
    losses, expected = Losses("student", 0, read_s), 0.0
    for batch, number in enumerate(NUMBERS):
        losses.add(batch, ("ce",), values(number))
        expected += float(torch.tensor(number))
    assert losses.read() == {"ce": expected}


def test_turns_of_a_batch_may_have_other_losses_in_other_precisions() -> None:
    losses = Losses("student", 0, math.inf)
    losses.add(0, ("ce", "mutual"), values(0.5, 0.25, dtype=torch.bfloat16))
    losses.add(0, ("peer1_ce", "ce"), values(0.1, 2.0, dtype=torch.float64))
    assert losses.read() == {"ce": 2.5, "mutual": 0.25, "peer1_ce": 0.1}


@pytest.mark.parametrize("names", [("ce",), ("ce", "kd", "at")], ids=["too few", "too many"])
def test_no_batch_takes_what_another_has_lost(names: tuple[str, ...]) -> None:
    losses = Losses("student", 0, math.inf)
    losses.add(0, names, values(1.0, 2.0))
    losses.add(1, ("ce", "kd", "at")[: 4 - len(names)], values(3.0, 4.0))
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is"):
        losses.read()


def test_sums_go_on_from_those_of_a_checkpoint_and_leave_them_alone() -> None:
    saved = {"ce": 1.5}
    losses = Losses("student", 0, math.inf, saved)
    losses.add(3, ("ce",), values(0.5))
    assert losses.read() == {"ce": 2.0}
    assert saved == {"ce": 1.5}


def test_nothing_is_read_until_it_is_time() -> None:
    unreadable = torch.empty(1, device="meta")
    Losses("student", 0, math.inf).add(0, ("ce",), unreadable)
    with pytest.raises(NotImplementedError, match="meta"):
        Losses("student", 0, 0).add(0, ("ce",), unreadable)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_no_number_is_named_though_it_is_read_later(bad: float) -> None:
    losses = Losses("student", 2, math.inf)
    for batch, found in enumerate([(1.0, 1.0), (1.0, bad), (math.nan, math.nan)]):
        losses.add(batch, ("ce", "kd"), values(*found))
    with pytest.raises(RecipeError, match=rf"student: loss 'kd' is {bad} in epoch 3, batch 2: lower schedule\.lr"):
        losses.read()


class RunsAway(Method):
    """Its third batch's loss is no number, and neither are its weights after that."""

    name = "runs_away"
    calls = 0

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        return {"ce": self.student(batch.images).square().mean() * (math.nan if self.calls == 3 else 1)}


def running_away() -> RunsAway:
    usual = method("vanilla")
    return RunsAway(find({"name": "vanilla"})[1], Networks(usual.student, usual.nets.teacher), usual.data)


@pytest.mark.parametrize("read_s", [0, math.inf])
@pytest.mark.parametrize("checkpoint_s", [0, math.inf])
def test_no_checkpoint_is_written_after_a_loss_that_is_no_number(
    tmp_path: Path, checkpoint_s: float, read_s: float
) -> None:
    step = plan(tmp_path, checkpoint_s, read_s=read_s)
    with pytest.raises(RecipeError, match="loss 'ce' is nan in epoch 1, batch 3: lower"):
        trained(tmp_path, step=step, how=running_away())
    state = checkpoint.load_checkpoint(step.checkpoint, CPU.where)
    assert (state and state["batch"]) == (None if checkpoint_s else 2)


def test_a_run_that_reads_seldom_ends_as_one_that_reads_always(tmp_path: Path) -> None:
    for read_s in (0, math.inf):
        folder = tmp_path / str(read_s)
        trained(folder, step=plan(folder, math.inf, read_s=read_s))
    assert (tmp_path / "0" / "metrics.jsonl").read_bytes() == (tmp_path / "inf" / "metrics.jsonl").read_bytes()
