"""The CPU gives a GPU its work ahead of time: no step of a method asks for a number that the device computes.

Without a GPU torch's `meta` device stands for one. It computes shapes and no numbers, so whoever asks for a number, or
for a shape that depends on one, fails there; and whatever is copied to it has to be copied without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cascade.errors import RecipeError
from tests.training.loops import CPU, Interrupted, digits, method, plan
from tests.training.networks import frozen, training_set
from training.data import Data, Split
from training.log import Log
from training.loop import train
from training.methods.base import METHODS, Batch, Method, import_all
from training.methods.count import Count
from training.methods.crd import OtherClasses
from training.methods.maps import pooled
from training.methods.vanilla import Vanilla

pytestmark = pytest.mark.train

import_all()
META = torch.device("meta")
SETTINGS: dict[str, dict[str, Any]] = {
    "cmi": {"synthesis_steps": 2, "student_steps": 1},
    "cmi_simkd": {"synthesis_steps": 2, "student_steps": 1},
    "crd, without replacement": {"negatives": 64},
    "joint_rd, a teacher that learns": {"teacher_mode": "joint", "teacher_model": "resnet8_0.25_a"},
    "zskt, attention": {"attention": 1.0},
}
NAMES = sorted({*METHODS, *SETTINGS})


class Stops(Log):
    """Ends a run after two batches."""

    def __init__(self) -> None:
        super().__init__(None, quiet=True)

    def advance(self, step: str, done: int) -> None:
        if done == 2:
            raise Interrupted


class Copies(TorchDispatchMode):
    """Refuses copies from the CPU to a device that wait until they are there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        found = function(*args, **given)
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" != found.device.type:
            assert given.get("non_blocking"), "a copy that waits: take training.device.sent"
        return found


def there(data: Data, device: torch.device) -> Data:
    """The data, all of it on a device."""

    def moved(split: Split) -> Split:
        return Split(split.images.to(device), split.labels.to(device), split.index.to(device))

    return replace(data, train=moved(data.train), dv=moved(data.dv), test=moved(data.test))


def parts(name: str) -> list[Method]:
    """A method, with three teachers if it takes as many by these settings, and what it trains before."""
    whole = method(name.partition(",")[0], **SETTINGS.get(name, {}))
    if whole.takes_several_teachers:
        more = tuple(frozen("resnet8_0.25_a", seed, 10) for seed in (5, 6))
        with suppress(RecipeError):
            whole = type(whole)(whole.config, replace(whole.nets, more_teachers=more), whole.data)
    return [whole, *(phase.method for phase in whole.phases())]


def two_steps(trained: Method, device: torch.device, folder: Path, watch: Any, *, fits: bool = True) -> None:
    """Train on two batches under a watch, with everything on a device, or all but a data set that does not fit."""
    networks: list[nn.Module] = [trained, *trained.nets.teachers, *trained.nets.earlier]
    where = replace(CPU, where=device)
    for net in networks:
        where.place(net)
    trained.phases = tuple  # type: ignore[method-assign]  # each is tried by itself
    data = there(digits(), device) if fits else digits()
    step = plan(folder, checkpoint_s=math.inf, read_s=math.inf)
    with pytest.raises(Interrupted), Stops() as log, watch:
        train(step, trained, data, where, log)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_its_device(name: str, tmp_path: Path) -> None:
    for trained in parts(name):
        two_steps(trained, META, tmp_path, Copies())  # type: ignore[no-untyped-call]


class Asks(Vanilla):
    """Looks at its own loss."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: loss for name, loss in super().losses(batch).items() if loss.item() < math.inf}


def test_a_method_that_asks_is_found_out(tmp_path: Path) -> None:
    usual = method("vanilla")
    with pytest.raises(RuntimeError, match="meta tensors"):
        two_steps(Asks(usual.config, usual.nets, usual.data), META, tmp_path, Copies())  # type: ignore[no-untyped-call]


def test_batches_of_a_set_that_does_not_fit_on_the_device_are_sent_ahead_too(tmp_path: Path) -> None:
    two_steps(method("vanilla"), META, tmp_path, Copies(), fits=False)  # type: ignore[no-untyped-call]


def test_what_maps_are_pooled_by_is_sent_ahead_too() -> None:
    with Copies():  # type: ignore[no-untyped-call]
        assert pooled(torch.empty(2, 3, 7, 7, device=META), 4, 4).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(("count", "different"), [(4, True), (5, True), (13, False)])
def test_classes_of_other_sizes_are_drawn_from_as_each_has_samples(count: int, different: bool) -> None:
    others = OtherClasses(training_set(*[0] * 8, *[1] * 4, *[2] * 4))  # 8, 12 and 12 samples are of other classes
    drawn = others.draw(torch.tensor([0, 1, 2]), count)
    assert drawn.shape == (3, count)
    assert not any(
        set(row) & set(own) for row, own in zip(drawn.tolist(), [range(8), range(8, 12), range(12, 16)], strict=True)
    )
    assert all(len(set(row)) == count for row in drawn.tolist()) == different


def test_where_only_some_classes_have_enough_others_those_are_drawn_without_replacement() -> None:
    others = OtherClasses(training_set(*[0] * 8, *[1] * 4, *[2] * 4))
    first, second = others.draw(torch.tensor([0, 1]), 12).tolist()
    assert len(set(first)) <= 8 < len(set(second)) == 12


def test_a_number_to_count_by_comes_back_from_a_checkpoint() -> None:
    saved, loaded = nn.Module(), nn.Module()
    count, again = Count(saved, "batches", 3), Count(loaded, "batches", 3)
    count.put(7)
    loaded.load_state_dict(saved.state_dict())
    assert int(count) == int(again) == 7
    assert saved.state_dict() == {"batches": torch.tensor(7)}


def test_a_number_to_count_by_is_read_without_its_device() -> None:
    module = nn.Module()
    count = Count(module, "batches", 3)
    module.to(META)
    count.put(int(count) + 1)
    assert int(count) == 4


@contextmanager
def no_waiting() -> Iterator[None]:
    """Torch refuses whatever makes the CPU wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_a_gpu(name: str, tmp_path: Path) -> None:
    for trained in parts(name):
        two_steps(trained, torch.device("cuda"), tmp_path, no_waiting())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_of_a_set_that_does_not_fit_are_copied_to_a_gpu_without_waiting(tmp_path: Path) -> None:
    two_steps(method("vanilla"), torch.device("cuda"), tmp_path, no_waiting(), fits=False)
