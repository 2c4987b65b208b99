"""SimKD and its variants: losses against NumPy in float64, who learns, and what is left of the networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.training import definitions
from tests.training.networks import Says, batch, frozen, networks, same, state, training_set
from training.methods.base import Batch, Method, Networks, find
from training.models import Network
from training.models.reused import Reused

pytestmark = pytest.mark.train

Array = NDArray[np.float64]
BATCH = batch(*[0, 1, 2, 3] * 4)
SECOND = frozen("resnet8_0.25_a", 7)


def nets(*, second: bool = False) -> Networks:
    found = networks(earlier=0)
    return Networks(found.student, found.teacher, (), (SECOND,) if second else ())


def method(name: str, *, second: bool = False, given: Networks | None = None, **settings: Any) -> Method:
    kind, config = find({"name": name, **settings})
    return kind(config, given or nets(second=second), training_set()).eval()


def numbers(x: Tensor) -> Array:
    return x.detach().numpy().astype(np.float64)


def linear(layer: nn.Linear, x: Array) -> Array:
    return x @ numbers(layer.weight).T + numbers(layer.bias)


def mse(one: Array, other: Array) -> float:
    return float(((one - other) ** 2).mean())


def sides(made: Method, number: int = 0) -> tuple[Array, Array, nn.Linear]:
    """What the projector gives, what the teacher has, and the teacher's classifier."""
    whole, teacher = made.deployable(), made.nets.teachers[number]
    assert isinstance(whole, Reused)
    assert isinstance(teacher, Network)
    with torch.no_grad():
        guess = whole.branches[number].front(whole.pre_pool(BATCH.images))
        return numbers(guess), numbers(teacher.pre_pool(BATCH.images)), teacher.classifier


def values(made: Method, given: Batch = BATCH) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in made.losses(given).items()}


def step(made: Method) -> None:
    """One of plain descent."""
    made.train()
    optimizer = torch.optim.SGD(made.trainable(), lr=0.05)
    torch.stack(list(made.losses(BATCH).values())).sum().backward()
    optimizer.step()
    made.eval()


@pytest.mark.parametrize("loss", ["input", "output", "both"])
def test_the_loss_is_the_mean_square_of_maps_or_of_logits(loss: str) -> None:
    made = method("simkd", loss=loss)
    guess, target, classifier = sides(made)
    logits = [linear(classifier, x.mean((2, 3))) for x in (guess, target)]
    expected = {"input": mse(guess, target), "output": mse(*logits)}
    wanted = expected if loss == "both" else {loss: expected[loss]}
    assert values(made) == pytest.approx(wanted, rel=1e-5)


def test_the_losses_of_several_teachers_are_averaged() -> None:
    made = method("simkd", second=True)
    expected = np.mean([mse(*sides(made, number)[:2]) for number in (0, 1)])
    assert values(made) == {"input": pytest.approx(float(expected), rel=1e-5)}


def test_a_teachers_larger_map_is_pooled_to_the_students() -> None:
    teacher, student = frozen("resnet8_0.5_a", 1), frozen("mobilenetv2_half", 2)
    made = method("simkd", given=Networks(student, teacher))
    large = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    kind, config = find({"name": "simkd"})
    made = kind(config, Networks(student, teacher), training_set(size=32)).eval()
    whole = made.deployable()
    assert isinstance(whole, Reused)
    assert isinstance(teacher, Network)
    with torch.no_grad():
        guess = numbers(whole.branches[0].front(whole.pre_pool(large.images)))
        target = numbers(teacher.pre_pool(large.images)).reshape(2, 32, 2, 4, 2, 4).mean((3, 5))
    assert values(made, large) == {"input": pytest.approx(mse(guess, target), rel=1e-5)}


def test_vectors_are_compared_after_pooling() -> None:
    made = method("simkd", align="vectors")
    guess, target, _ = sides(made)
    assert guess.shape == (16, 32, 1, 1)
    assert values(made) == {"input": pytest.approx(mse(guess[:, :, 0, 0], target.mean((2, 3))), rel=1e-5)}


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "both"}, {"stages": 1}, {"stages": 2}, {"align": "vectors"}], ids=str
)
@pytest.mark.parametrize("second", [False, True])
def test_nothing_of_the_teachers_moves_and_nothing_of_them_gets_a_gradient(
    settings: dict[str, Any], second: bool
) -> None:
    made = method("simkd", second=second, **settings)
    before = state(*made.nets.teachers)
    step(made)
    assert same(state(*made.nets.teachers), before)
    assert all(value.grad is None for net in made.nets.teachers for value in net.parameters())
    assert not any(net.training for net in made.nets.teachers)


@pytest.mark.parametrize(("stages", "left"), [(0, 3), (1, 2), (2, 1)])
def test_only_what_is_deployed_of_the_student_learns(stages: int, left: int) -> None:
    made = method("simkd", stages=stages)
    learns = {id(value) for value in made.trainable()}
    student = made.student
    assert isinstance(student, Network)
    assert [all(id(p) in learns for p in stage.parameters()) for stage in student.stages] == [
        n < left for n in range(3)
    ]
    assert not any(id(value) in learns for value in student.classifier.parameters())


def test_labels_are_not_used() -> None:
    made = method("simkd")
    assert values(made) == values(made, Batch(BATCH.images, BATCH.labels.flip(0), BATCH.index))


def test_what_is_deployed_is_the_projected_map_pooled_under_the_teachers_classifier() -> None:
    made = method("simkd")
    guess, _, classifier = sides(made)
    with torch.no_grad():
        found = numbers(made.deployable()(BATCH.images))
    assert np.allclose(found, linear(classifier, guess.mean((2, 3))), atol=1e-5)


def test_a_checkpoint_brings_back_what_is_deployed() -> None:
    one, other = method("simkd", second=True), method("simkd", second=True)
    step(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.deployable().eval()(BATCH.images), one.deployable().eval()(BATCH.images))


def test_a_teachers_map_that_can_be_negative_is_refused() -> None:
    raw = Networks(networks().student, frozen("wrn_10_1_preact", 1))
    assert method("simkd", given=raw)  # its head ends in a ReLU
    with pytest.raises(RecipeError, match="before its last 1 stages can be negative"):
        method("simkd", given=raw, stages=1)


@pytest.mark.parametrize("name", ["simkd", "simkd_v", "aekd_f"])
def test_a_teacher_without_maps_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' compares maps, and the teacher gives none"):
        method(name, given=Networks(networks().student, Says([0.0] * 4)))


def test_joint_training_weighs_kd_against_simkd() -> None:
    given = nets()
    for net in given.student, given.teacher:
        assert isinstance(net, Network)
        net.classifier.weight.data.mul_(10)  # logits far enough apart for float32 to give their divergence exactly
    made, alone = method("simkd_joint", given=given, alpha=0.75), method("simkd", given=given)
    with torch.no_grad():
        ours, theirs = numbers(made.student(BATCH.images)), numbers(made.teacher(BATCH.images))
    labelled = -np.log(definitions.shares(ours))[np.arange(16), BATCH.labels.numpy()].mean()
    found = values(made)
    assert found["kd"] == pytest.approx(0.25 * definitions.kl(ours, theirs, 4.0), rel=1e-5)
    assert found["ce"] == pytest.approx(0.25 * labelled, rel=1e-5)
    made.whole[0].branches[0].front.load_state_dict(alone.whole[0].branches[0].front.state_dict())  # type: ignore[index, union-attr]
    assert found.keys() == {"ce", "kd", "input"}
    assert values(made)["input"] == pytest.approx(0.75 * values(alone)["input"], rel=1e-5)


@pytest.mark.parametrize(("alpha", "terms"), [(0.0, {"ce", "kd"}), (1.0, {"input"})])
def test_at_the_ends_of_alpha_one_head_learns_and_the_other_does_not(alpha: float, terms: set[str]) -> None:
    made = method("simkd_joint", alpha=alpha)
    own, front = (list(part.parameters()) for part in (made.student.classifier, made.fronts))  # type: ignore[union-attr]
    assert values(made).keys() == terms
    step(made)
    assert all((value.grad is None) == (alpha == 1) for value in own)
    assert all((value.grad is None) == (alpha == 0) for value in front)


@pytest.mark.parametrize("settings", [{"stages": 1}, {"student_map": "last_stage"}], ids=str)
def test_the_students_own_head_reads_its_own_map_wherever_the_projector_reads(settings: dict[str, Any]) -> None:
    made = method("simkd_joint", alpha=0.0, **settings)
    logits = made.student(BATCH.images).float()
    expected = nn.functional.cross_entropy(logits, BATCH.labels)
    assert values(made)["ce"] == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize(("deploy", "other"), [("teacher", "student"), ("student", "teacher")])
def test_one_head_is_served_and_the_other_is_measured(deploy: str, other: str) -> None:
    made = method("simkd_joint", deploy=deploy)
    heads = {"teacher": made.whole[0], "student": made.student}  # type: ignore[index]
    assert made.deployable() is heads[deploy]
    assert made.other_heads() == {other: heads[other]}
    assert (made.deployed_name("a", ("b",)) == "a") == (deploy == "student")


def test_sequential_training_moves_the_classifier_and_nothing_else() -> None:
    made = method("simkd_sequential")
    student = made.student
    assert isinstance(student, Network)
    body = (student.stem, student.stages, student.head)
    before, classifier = state(*body), state(student.classifier)
    step(made)
    assert same(state(*body), before)
    assert not same(state(student.classifier), classifier)


def test_sequential_training_reads_the_students_own_vector() -> None:
    made = method("simkd_sequential")
    expected = nn.functional.cross_entropy(made.student(BATCH.images), BATCH.labels)
    assert values(made) == {"ce": pytest.approx(float(expected.detach()), rel=1e-6)}


@pytest.mark.parametrize("second", [False, True])
def test_merged_linear_maps_give_the_mean_of_the_teachers_logits(second: bool) -> None:
    made = method("simkd_v", second=second)
    step(made)
    student = made.student
    assert isinstance(student, Network)
    with torch.no_grad():
        vector = student.pool(student.pre_pool(BATCH.images))
        parts = [
            teacher.classifier(linear_map(vector))  # type: ignore[operator]
            for teacher, linear_map in zip(made.nets.teachers, made.maps, strict=True)  # type: ignore[arg-type]
        ]
        found = made.deployable()(BATCH.images)
    assert (found - torch.stack(parts).mean(0)).abs().max() < 1e-5
    assert made.deployable() is student


def test_simkd_v_compares_vectors_and_averages_over_teachers() -> None:
    made = method("simkd_v", second=True)
    student = made.student
    assert isinstance(student, Network)
    found = []
    with torch.no_grad():
        vector = numbers(student.pool(student.pre_pool(BATCH.images)))
        for teacher, layer in zip(made.nets.teachers, made.maps, strict=True):  # type: ignore[arg-type]
            assert isinstance(teacher, Network)
            found.append(mse(linear(layer, vector), numbers(teacher.pre_pool(BATCH.images)).mean((2, 3))))
    assert values(made) == {"vector": pytest.approx(float(np.mean(found)), rel=1e-5)}


def test_the_classifier_of_simkd_v_is_made_and_not_trained() -> None:
    made = method("simkd_v")
    learns = {id(value) for value in made.trainable()}
    assert isinstance(made.student, Network)
    assert not any(id(value) in learns for value in made.student.classifier.parameters())
