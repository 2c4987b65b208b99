"""What every method has to keep, whatever it is: one set of tests, no special case."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.readme import programs
from tests.training.networks import Says, batch, networks, same, state, training_set
from training.methods.base import METHODS, Batch, Method, Networks, find, import_all, register

pytestmark = pytest.mark.train

import_all()
NAMES = sorted(METHODS)
LABELS = [0, 1, 2, 3] * 4


def method(name: str) -> Method:
    """A method with its defaults, or one of its phases: `ab.init`."""
    name, _, phase = name.partition(".")
    kind, config = find({"name": name})
    trained = kind(config, networks(), training_set())
    return {found.name: found.method for found in trained.phases()}.get(phase, trained)


def phases(name: str) -> list[str]:
    kind, config = find({"name": name})
    return [f"{name}.{phase.name}" for phase in kind(config, networks(), training_set()).phases()]


TRAINED = [*NAMES, *(phase for name in NAMES for phase in phases(name))]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def all_turns(trained: Method) -> dict[str, Tensor]:
    """The losses of every turn of a batch, before anybody has moved."""
    turns = (trained.losses(replace(batch(*LABELS), turn=turn)) for turn in range(trained.turns()))
    return {name: loss for losses in turns for name, loss in losses.items()}


def seeded(trained: Method) -> dict[str, Tensor]:
    """Losses, with the dice thrown as the loop throws them: anew for each batch."""
    torch.manual_seed(0)
    return all_turns(trained)


def pointers(*nets: nn.Module) -> set[int]:
    return {value.data_ptr() for net in nets for value in net.state_dict().values() if value.numel()}


def steps(trained: Method, count: int, lr: float = 0.02) -> list[float]:
    """Losses of a few plain steps on one batch, the last one after them."""
    optimizer = torch.optim.SGD(trained.trainable(), lr=lr)
    trained.train()
    values = []
    for _ in range(count):
        loss = total(all_turns(trained))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return [*values, float(total(all_turns(trained)).detach())]


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_named_finite_scalars(name: str) -> None:
    losses = all_turns(method(name))
    assert losses
    for key, loss in losses.items():
        assert key.isidentifier()
        assert loss.shape == ()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_float32_whatever_the_precision_of_the_forward_pass(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = all_turns(method(name))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", TRAINED)
def test_everything_trainable_gets_a_gradient(name: str) -> None:
    trained = method(name)
    parameters = list(trained.trainable())
    total(all_turns(trained)).backward()
    assert parameters
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)


@pytest.mark.parametrize("name", TRAINED)
def test_teacher_and_earlier_stages_stay_bit_for_bit(name: str) -> None:
    trained = method(name)
    others = [*trained.nets.earlier, *([] if trained.teacher_learns else [trained.nets.teacher])]
    before = state(*others)
    steps(trained, 3)
    assert same(state(*others), before)
    assert not any(net.training for net in others if net is not None)


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_of_a_method_holds_nothing_of_the_frozen_networks(name: str) -> None:
    trained = method(name)
    kept = {value.data_ptr() for value in trained.state_dict().values() if value.numel()}
    assert trained.nets.teacher is not None
    assert kept.isdisjoint(pointers(trained.nets.teacher, *trained.nets.earlier))


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_deployed_gives_logits(name: str) -> None:
    logits = method(name).deployable().eval()(batch(*LABELS).images)
    assert logits.shape == (16, 4)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", TRAINED)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    losses = steps(method(name), 5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TRAINED)
def test_losses_do_not_depend_on_how_often_they_were_asked_for(name: str) -> None:
    trained = method(name).eval()
    first, second = (seeded(trained) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_the_module_names_its_source(name: str) -> None:
    assert "Source:" in (sys.modules[METHODS[name].__module__].__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"method '{name}': colour"):
        find({"name": name, "colour": "red"})


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_needs_a_teacher_says_so(name: str) -> None:
    kind, config = find({"name": name})
    without = Networks(networks().student, None, networks().earlier)
    if kind.needs_teacher:
        with pytest.raises(RecipeError, match="needs a teacher"):
            kind(config, without, training_set())
    else:
        assert kind(config, without, training_set()).losses(batch(*LABELS))


def test_the_method_that_the_readme_adds_is_one() -> None:
    (program,) = programs("Add a method")
    try:
        exec(program, {"__name__": "training.methods.mine"})
        assert set(method("mine").losses(batch(*LABELS))) == {"ce", "logits"}
        assert steps(method("mine"), 5)[-1] < steps(method("mine"), 1)[0]
    finally:
        METHODS.pop("mine", None)


@pytest.mark.parametrize("settings", [{}, {"name": "alchemy"}, {"name": None}])
def test_an_unknown_method_is_refused_with_those_there_are(settings: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=f"there are {', '.join(NAMES)}"):
        find(settings)


def test_two_methods_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="two methods are called 'vanilla'"):
        register("vanilla")(METHODS["kd"])


def test_a_method_without_losses_says_what_is_missing() -> None:
    class Empty(Method):
        name = "empty"
        needs_teacher = False

    with pytest.raises(NotImplementedError, match="'empty' must define losses"):
        Empty(Empty.Config(), Networks(Says([0.0, 0.0])), training_set()).losses(batch(0))


def test_helpers_that_learn_are_trainable_and_frozen_parts_are_not() -> None:
    class WithHelper(Method):
        name = "with_helper"
        needs_teacher = False

        def __init__(self) -> None:
            super().__init__(self.Config(), Networks(Says([0.0, 0.0])), training_set())
            self.helper = nn.Linear(2, 2)
            self.helper.bias.requires_grad = False

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {"helper": self.helper(self.student(batch.images)).sum()}

    trained = WithHelper()
    assert [parameter.shape for parameter in trained.trainable()] == [(1, 2), (2, 2)]
