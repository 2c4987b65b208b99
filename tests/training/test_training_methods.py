"""What every method has to keep, whatever it is: one set of tests, no special case."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.training.networks import Says, batch, networks, same, state, training_set
from training.methods.base import METHODS, Batch, Method, Networks, find, import_all, register

pytestmark = pytest.mark.train

import_all()
NAMES = sorted(METHODS)
LABELS = [0, 1, 2, 3] * 4


def method(name: str) -> Method:
    kind, config = find({"name": name})
    return kind(config, networks(), data=training_set())


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def steps(trained: Method, count: int, lr: float = 0.02) -> list[float]:
    """Losses of a few plain steps on one batch, the last one after them."""
    optimizer = torch.optim.SGD(trained.trainable(), lr=lr)
    trained.train()
    values = []
    for _ in range(count):
        loss = total(trained.losses(batch(*LABELS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return [*values, float(total(trained.losses(batch(*LABELS))).detach())]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_named_finite_scalars(name: str) -> None:
    losses = method(name).losses(batch(*LABELS))
    assert losses
    for key, loss in losses.items():
        assert key.isidentifier()
        assert loss.shape == ()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", NAMES)
def test_everything_trainable_gets_a_gradient(name: str) -> None:
    trained = method(name)
    parameters = list(trained.trainable())
    total(trained.losses(batch(*LABELS))).backward()
    assert parameters
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)


@pytest.mark.parametrize("name", NAMES)
def test_teacher_and_earlier_stages_stay_bit_for_bit(name: str) -> None:
    trained = method(name)
    others = [*trained.nets.earlier, *([] if trained.teacher_learns else [trained.nets.teacher])]
    before = state(*others)
    steps(trained, 3)
    assert same(state(*others), before)
    assert not any(net.training for net in others if net is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_a_method_holds_nothing_of_the_frozen_networks(name: str) -> None:
    trained = method(name)
    kept = sum(value.numel() for value in trained.state_dict().values())
    assert kept < sum(value.numel() for net in (trained.student, trained.nets.teacher) for value in state(net))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_deployed_gives_logits(name: str) -> None:
    logits = method(name).deployable().eval()(batch(*LABELS).images)
    assert logits.shape == (16, 4)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    losses = steps(method(name), 5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_losses_do_not_depend_on_how_often_they_were_asked_for(name: str) -> None:
    trained = method(name).eval()
    first, second = (trained.losses(batch(*LABELS)) for _ in range(2))
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


@pytest.mark.parametrize("settings", [{}, {"name": "alchemy"}, {"name": None}])
def test_an_unknown_method_is_refused_with_those_there_are(settings: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"there are aekd, .*res_kd, .*vanilla"):
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
