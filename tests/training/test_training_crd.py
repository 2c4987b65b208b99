"""Contrastive distillation: what is drawn, what is remembered, and that a run which was stopped remembers the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade.errors import RecipeError
from tests.training.loops import Interrupted, StopsAt, method, trained
from tests.training.networks import batch, networks, same, state, training_set
from training.methods import crd as crd_module
from training.methods.base import TrainingSet, find
from training.methods.crd import CRD, Bank, OtherClasses, first_different
from training.methods.maps import unit

pytestmark = pytest.mark.train

LABELS = [0, 1, 2, 3] * 4
FEW = {"negatives": 5, "width": 6}


def crd() -> CRD:
    kind, config = find({"name": "crd", **FEW})
    torch.manual_seed(0)
    made = kind(config, networks(), training_set())
    assert isinstance(made, CRD)
    return made


def others(labels: list[int], index: list[int] | None = None) -> OtherClasses:
    known = torch.tensor(labels)
    seen = torch.arange(len(labels)) if index is None else torch.tensor(index)
    return OtherClasses(TrainingSet(known, seen, 8, 16))


def drawn(from_: OtherClasses, labels: list[int], count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return from_.draw(torch.tensor(labels), count)


def test_negatives_are_of_other_classes() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2, 0, 0, 3])
    found = labels[drawn(others(labels.tolist()), [0, 1, 2, 3], 4)]
    assert (found != torch.arange(4)[:, None]).all()


def test_negatives_are_drawn_without_replacement_where_there_are_enough() -> None:
    found = drawn(others([0, 0, 1, 1, 1, 2]), [0, 0, 1], 3)
    assert [sorted(set(row)) for row in found.tolist()][2] == [0, 1, 5]
    assert all(len(set(row)) == 3 for row in found.tolist())


def test_where_there_are_too_few_others_they_are_drawn_again() -> None:
    found = drawn(others([0, 0, 0, 1, 1]), [0, 1], 3).tolist()
    assert set(found[0]) <= {3, 4}
    assert sorted(found[1]) == [0, 1, 2]


@pytest.mark.parametrize("count", [2, 9])
def test_all_others_are_equally_likely(count: int) -> None:
    found = drawn(others([0, 1, 0, 2, 2, 1]), [0] * 4000, count)
    shares = torch.bincount(found.flatten(), minlength=6) / found.numel()
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0, 0.25, 0.25, 0.25]), atol=0.02, rtol=0)


def test_samples_that_are_held_out_are_never_drawn() -> None:
    held_out = others([0, 1, 0, 1, 2, 1], [0, 1, 4])
    assert held_out.count == 3
    assert set(drawn(held_out, [0] * 50, 1).flatten().tolist()) == {1, 4}


def test_one_class_alone_cannot_be_contrasted() -> None:
    with pytest.raises(RecipeError, match="all training samples have the same"):
        others([1, 1, 1])


def test_rows_keep_half_of_themselves_and_are_of_length_one() -> None:
    bank = Bank(training_set(), 3, 0.07, 0.5)
    before, fresh = bank.rows.clone(), unit(torch.randn(2, 3))
    bank.keep(torch.tensor([4, 1]), fresh)
    assert torch.equal(bank.rows, before)
    bank.settle()
    torch.testing.assert_close(bank.rows[[4, 1]], unit(0.5 * before[[4, 1]] + 0.5 * fresh))
    torch.testing.assert_close(bank.rows[[4, 1]].norm(dim=1), torch.ones(2))
    untouched = [place for place in range(16) if place not in (1, 4)]
    assert torch.equal(bank.rows[untouched], before[untouched])


def test_the_first_rows_are_uniform_and_of_length_one_on_average() -> None:
    torch.manual_seed(0)
    rows = Bank(training_set(*range(400)), 128, 0.07, 0.5).rows
    assert rows.abs().max() <= (3 / 128) ** 0.5
    assert float(rows.square().sum(1).mean()) == pytest.approx(1, abs=0.01)


def test_scores_are_those_of_the_rows_that_were_named_and_z_is_their_mean_times_n() -> None:
    bank = Bank(training_set(), 3, 0.5, 0.5)
    embedded, index = torch.randn(2, 3, requires_grad=True), torch.tensor([[0, 5], [3, 3]])
    scores, z = bank.scores(embedded, index, 16)
    expected = ((bank.rows[index] * embedded[:, None]).sum(2) / 0.5).exp()
    torch.testing.assert_close(scores, expected)
    assert float(z) == pytest.approx(expected.mean().item() * 16)
    assert not z.requires_grad


def test_z_is_constant_after_the_first_batch_and_each_side_has_its_own() -> None:
    trained = crd().train()
    trained.losses(batch(*LABELS))
    first = float(trained.student_bank.z), float(trained.teacher_bank.z)
    trained.losses(batch(*LABELS, seed=1))
    assert (float(trained.student_bank.z), float(trained.teacher_bank.z)) == first
    assert first[0] > 0
    assert first[0] != first[1]


def test_the_memory_takes_each_batch_in_but_not_in_eval_mode() -> None:
    trained = crd()
    before = trained.student_bank.rows.clone()
    trained.eval().losses(batch(*LABELS))
    assert torch.equal(trained.student_bank.rows, before)
    trained.train().losses(batch(*LABELS))
    for bank in (trained.student_bank, trained.teacher_bank):
        bank.settle()
        torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(16))


def test_what_is_remembered_has_no_gradient_and_the_batch_that_comes_in_changes_none() -> None:
    trained = crd().train()
    loss = trained.losses(batch(*LABELS))["crd"]
    loss.backward()
    assert trained.embed_teacher.weight.grad is not None
    assert not any(buffer.requires_grad for buffer in trained.buffers())


def test_no_bank_is_copied_for_the_backward_pass() -> None:
    trained = crd().train()
    held: list[int] = []

    def pack(x: Tensor) -> Tensor:
        held.append(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = trained.losses(batch(*LABELS))["crd"]
    assert {bank.rows.untyped_storage().data_ptr() for bank in (trained.student_bank, trained.teacher_bank)} <= {*held}
    assert loss.isfinite()


def test_what_is_read_of_the_memory_has_the_last_batch_and_what_is_loaded_is_not_moved_by_it() -> None:
    bank = Bank(training_set(), 3, 0.07, 0.5)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.keep(torch.tensor([2]), unit(torch.randn(1, 3)))
    assert not torch.equal(bank.state_dict()["rows"][2], before["rows"][2])
    bank.keep(torch.tensor([2]), unit(torch.randn(1, 3)))
    bank.load_state_dict(before)
    assert torch.equal(bank.state_dict()["rows"], before["rows"])


def test_of_many_samples_others_are_drawn_without_a_key_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1, 2, 3] * 500
    known = others(labels)
    monkeypatch.setattr(crd_module, "LARGE", 1000)
    found = drawn(known, [0, 1, 2, 3], 375)
    assert all(len(set(row)) == 375 for row in found.tolist())
    assert (torch.tensor(labels)[found] != torch.arange(4)[:, None]).all()


def test_the_first_different_numbers_are_equally_likely() -> None:
    torch.manual_seed(0)
    found = first_different(torch.full((4000, 1), 40), 10, 40)
    assert all(len(set(row)) == 10 for row in found[:100].tolist())
    shares = torch.bincount(found.flatten(), minlength=40) / found.numel()
    torch.testing.assert_close(shares, torch.full((40,), 1 / 40), atol=0.002, rtol=0)


def test_a_run_that_was_stopped_remembers_the_same(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", how=method("crd", **FEW))
    with pytest.raises(Interrupted):
        trained(tmp_path / "stopped", StopsAt(tmp_path / "stopped", 6), how=method("crd", **FEW))
    assert same(state(trained(tmp_path / "stopped", how=method("crd", **FEW))), state(whole))
