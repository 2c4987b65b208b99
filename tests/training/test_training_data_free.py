"""Methods without data: they read no training image, move what they should, and a stop changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from cascade.errors import RecipeError
from tests.tiny_run import train_tiny
from tests.training import definitions
from tests.training.loops import CPU, Interrupted, StopsAt, digits, method, plan, trained
from tests.training.networks import Says, frozen, networks, same, state, training_set
from training import models
from training.data import Data, Split
from training.evaluate import evaluate
from training.log import Log
from training.loop import train
from training.methods.base import Batch, Networks, find
from training.methods.simkd import SimKD
from training.recipe import load
from training.schedule import learning_rate
from training.steps import run_recipe
from training.synthesis.base import DataFree
from training.synthesis.generative import Generative
from training.synthesis.generator import Generator
from training.synthesis.inversion import Inversion
from training.synthesis.statistics import statistics_loss, watched
from training.synthesis.views import part_view, whole_view

pytestmark = pytest.mark.train

GENERATIVE = {"noise": 6, "width": 4, "generator_batch": 16, "student_steps": 3}
INVERSION = {
    **{"noise": 6, "width": 4, "synthesis_batch": 16, "synthesis_steps": 2, "student_steps": 3},
    **{"embedding": 8, "bank": 40, "negatives": 16},
}
SMALL: dict[str, dict[str, Any]] = {"zskt": GENERATIVE, "dafl": GENERATIVE, "cmi": INVERSION, "cmi_simkd": INVERSION}
NAMES = sorted(SMALL)
RECIPES = Path(__file__).parents[2] / "training" / "recipes"


def small(name: str, **settings: Any) -> DataFree:
    found = method(name, **{**SMALL[name], **settings})
    assert isinstance(found, DataFree)
    return found


def generator_of(how: DataFree) -> Generator:
    made = how.synthesis
    assert isinstance(made, Generative | Inversion)
    return made.generator


def exact(x: Tensor) -> definitions.Array:
    found: definitions.Array = x.detach().double().numpy()
    return found


def no_draw() -> Batch:
    raise AssertionError("a training image was asked for")


def without_images() -> Data:
    """Digits whose training images and labels cannot be read: there are none."""
    ours = digits()
    gone = Split(torch.empty(0, 8, 8, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), ours.train.index)
    return replace(ours, train=gone)


@pytest.mark.parametrize("name", NAMES)
def test_training_images_and_labels_are_not_read(tmp_path: Path, name: str) -> None:
    with_them = trained(tmp_path / "with", how=small(name))
    blind = small(name)
    with Log(tmp_path / "blind", quiet=True) as log:
        train(plan(tmp_path / "blind"), blind, without_images(), CPU, log)
    assert same(state(blind), state(with_them))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batches", [2, 9])
def test_a_run_that_was_stopped_ends_with_the_same_weights_and_images(tmp_path: Path, name: str, batches: int) -> None:
    whole = trained(tmp_path / "whole", how=small(name))
    with pytest.raises(Interrupted):
        trained(tmp_path / "stopped", StopsAt(tmp_path / "stopped", batches), how=small(name))
    again = trained(tmp_path / "stopped", how=small(name))
    assert same(state(again), state(whole))
    for file in ("metrics.jsonl", "steps/residual1/images.png"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("policy", ["follow", "constant"])
def test_a_generators_rate_follows_the_students_or_stays(tmp_path: Path, policy: str) -> None:
    how, step, rates = small("zskt", generator_policy=policy, generator_lr=0.01), plan(tmp_path), []
    generator = how.optimizers()["generator"]
    generator.register_step_post_hook(lambda *_: rates.append(generator.param_groups[0]["lr"]))
    trained(tmp_path, step=step, how=how)
    batches = step.schedule.epochs * (len(digits().train) // step.schedule.batch_size)
    shares = [learning_rate(step.schedule, done / batches) / step.schedule.lr for done in range(0, batches, 3)]
    assert len(shares) > 2
    assert rates == pytest.approx([0.01 * (share if policy == "follow" else 1) for share in shares])


@pytest.mark.parametrize(("name", "policy"), [("zskt", "follow"), ("dafl", "constant")])
def test_who_follows_unless_the_recipe_says_other(name: str, policy: str) -> None:
    assert find({"name": name})[1].model_dump()["generator_policy"] == policy


@pytest.mark.parametrize("name", NAMES)
def test_images_are_made_when_it_is_time_and_leave_the_student_without_a_gradient(name: str) -> None:
    how = small(name).train()
    weights = [value.detach().clone() for value in how.trainable()]
    modes = [module.training for module in how.modules()]
    made = []
    for _ in range(4):
        how.make_batch(no_draw)
        made.append(state(generator_of(how)))
    assert same(made[0], made[1]) == isinstance(how.synthesis, Inversion)  # the other's batch norms go on
    assert not same(made[2], made[3])
    assert [module.training for module in how.modules()] == modes
    assert all(value.grad is None for value in how.parameters() if id(value) in set(map(id, how.trainable())))
    assert same(weights, [value.detach() for value in how.trainable()])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_has_the_size_of_the_schedule_and_the_images_of_the_recipe(name: str) -> None:
    batch = small(name).make_batch(no_draw)
    assert batch.images.shape == (256, 3, 8, 8)
    assert torch.isfinite(batch.images).all()
    assert set(batch.labels.tolist()) == {-1}


@pytest.mark.parametrize("name", NAMES)
def test_there_are_no_pictures_before_there_are_images(name: str) -> None:
    how = small(name)
    assert how.pictures() is None
    how.make_batch(no_draw)
    pictures = how.pictures()
    assert pictures is not None
    assert pictures.min() >= 0
    assert pictures.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_optimiser_of_the_loop_moves_nothing_that_makes_images(name: str) -> None:
    how = small(name)
    makers = {id(value) for value in how.synthesis.parameters()}
    moved = {id(value) for value in how.trainable()}
    held = {
        id(value) for other in how.optimizers().values() for group in other.param_groups for value in group["params"]
    }
    assert moved
    assert not moved & makers
    assert held <= makers


@pytest.mark.parametrize("name", ["zskt", "dafl"])
def test_a_generator_lowers_what_it_is_judged_by(name: str) -> None:
    how = small(name, generator_steps=30, generator_lr=0.01).eval()
    made = how.synthesis
    assert isinstance(made, Generative)
    noise = torch.randn(64, 6)
    made.generator.train()

    def judged() -> float:
        return made.judge(made.normalised(made.generator(noise))).item()

    before = judged()
    how.make_batch(no_draw)
    assert judged() < before


def test_longer_inversion_brings_images_nearer_to_what_the_teacher_remembers() -> None:
    def apart(steps: int) -> float:
        torch.manual_seed(0)
        how = small("cmi", synthesis_steps=steps, generator_lr=0.02)
        batch = how.make_batch(no_draw)
        assert how.nets.teacher is not None
        with watched(how.nets.teacher) as seen:
            how.nets.teacher(batch.images)
        return statistics_loss(seen).item()

    # The teacher's memories are those of one batch of noise, mixed with where they began: none can be reached wholly.
    assert apart(30) < 0.97 * apart(1)


def test_terms_without_a_weight_can_be_left_out() -> None:
    how = small("cmi", contrast=0.0, adversarial=0.0)
    made = how.synthesis
    assert isinstance(made, Inversion)
    before = state(made.head)
    how.make_batch(no_draw)
    assert same(state(made.head), before)


def test_inversion_keeps_the_images_of_the_lowest_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    made = small("cmi", synthesis_steps=3).synthesis
    assert isinstance(made, Inversion)
    values = iter([3.0, 1.0, 2.0])
    shown: list[Tensor] = []

    def judged(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shown.append(images.detach())
        features = images.mean((2, 3)).repeat(1, made.bank.channels)[:, : made.bank.channels]
        return (
            (images * 0).sum() + sum(value.sum() * 0 for value in made.head.parameters()) + next(values),
            features,
            features,
        )

    monkeypatch.setattr(made, "judged", judged)
    made.synthesize()
    torch.testing.assert_close(made.pool.last(16), (shown[1] * 255).round() / 255)


def test_images_are_judged_by_all_four_terms() -> None:
    how = small("cmi")
    images, labels = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 10
    for net in how.student.eval(), how.nets.teacher:  # they agree on some images, and clearly not on others
        assert isinstance(net, models.Network)
        net.classifier.weight.data.mul_(30)
        net.classifier.bias.data.sub_(net(images).mean(0).detach())
    made = how.synthesis
    assert isinstance(made, Inversion)
    torch.manual_seed(0)
    expected = definitions_of(made, images, labels)
    usual, nothing = made.config, dict.fromkeys(expected, 0.0)
    assert expected["adversarial"] < 0

    def judged(weights: dict[str, float]) -> float:
        torch.manual_seed(0)
        made.config = usual.model_copy(update={**nothing, **weights})
        with torch.no_grad():
            return made.judged(images, labels)[0].item()

    assert {name: judged({name: 2.0}) / 2 for name in expected} == pytest.approx(expected, rel=1e-5)
    weights = {"bn": 2.0, "one_hot": 3.0, "adversarial": 5.0, "contrast": 7.0}
    assert judged(weights) == pytest.approx(sum(weights[name] * value for name, value in expected.items()), rel=1e-5)


@torch.no_grad()
def definitions_of(made: Inversion, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The four terms without their weights, by the first views that torch's dice give."""
    whole, local = (view(images, made.data.augment) for view in (whole_view, part_view))
    with watched(made.teacher[0]) as seen:
        target = made.teacher[0](made.normalised(whole))
    student = made.student(made.normalised(whole))
    with watched(made.teacher[0]) as parts:
        made.teacher[0](made.normalised(local))
    embedded = [exact(made.head(torch.cat([one.maps.mean((2, 3)) for one in maps], 1))) for maps in (parts, seen)]
    remembered = [list(map(exact, x)) for x in zip(*((one.maps, one.mean, one.variance) for one in seen), strict=True)]
    return {
        "bn": definitions.statistics(*remembered),
        "one_hot": -float(np.log(definitions.shares(exact(target)))[np.arange(len(labels)), labels.numpy()].mean()),
        "adversarial": definitions.adversarial(exact(student), exact(target), where_agreed=True),
        "contrast": definitions.contrastive(embedded[0], embedded[1], made.config.contrast_t, len(labels)),
    }


def test_under_simkd_it_is_the_reused_classifier_that_images_have_to_part() -> None:
    how = small("cmi_simkd")
    assert isinstance(how, SimKD)
    made = how.synthesis
    assert isinstance(made, Inversion)
    images = torch.rand(4, 3, 8, 8)
    expected = how.deployable().eval()(images)
    assert torch.equal(made.student(images), expected)
    assert set(how.losses(made.batch())) == {"input"}


def test_zskt_may_compare_attention_too() -> None:
    how = small("zskt", attention=250.0).eval()
    batch = how.make_batch(no_draw)
    student, teacher = how.student, how.nets.teacher
    assert isinstance(student, models.Network)
    assert isinstance(teacher, models.Network)
    with torch.no_grad():
        ours, theirs = student.features(batch.images), teacher.features(batch.images)
    apart = sum(definitions.at(exact(ours.maps[stage]), exact(theirs.maps[stage])) for stage in (1, 2, 3))
    kd = definitions.kl(exact(ours.logits), exact(theirs.logits), 1.0)
    found = {name: loss.item() for name, loss in how.losses(batch).items()}
    assert found == pytest.approx({"kd": kd, "attention": 250 * apart}, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "teacher", "message"),
    [
        ({"name": "cmi"}, Says([0.0] * 4), "'cmi' .* batch norms .* take another teacher"),
        ({"name": "dafl"}, Says([0.0] * 4), "'dafl' .* vector .* zskt"),
        ({"name": "zskt", "attention": 1.0}, Says([0.0] * 4), "'zskt' .* attention: 0"),
        ({"name": "cmi_simkd"}, Says([0.0] * 4), "'cmi_simkd' compares maps"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused(settings: dict[str, Any], teacher: nn.Module, message: str) -> None:
    kind, config = find(settings)
    with pytest.raises(RecipeError, match=message):
        kind(config, Networks(models.build("resnet8_0.25_a", 4), teacher), training_set())


def test_one_teacher_is_all_that_is_inverted() -> None:
    kind, config = find({"name": "cmi_simkd"})
    nets = replace(networks(), more_teachers=(frozen("resnet8_0.25_a", 3),))
    with pytest.raises(RecipeError, match="learns from one teacher"):
        kind(config, nets, training_set())


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(RecipeError, match="'zskt' makes its images in one process"):
        small("zskt")


def test_a_method_without_data_says_what_it_lacks() -> None:
    class Empty(DataFree):
        name = "empty"

    with pytest.raises(NotImplementedError, match="'empty' must define synthesize"):
        Empty(Empty.Config(), networks(), training_set())


def test_a_run_without_data_stores_what_simkd_would_serve(tmp_path: Path) -> None:
    teacher = {"model": "resnet8_0.25_a", "method": {"name": "vanilla"}}
    student = {"model": "resnet8_0.125_a", "method": {"name": "cmi_simkd", **INVERSION}}
    run = train_tiny(tmp_path / "run", teacher=teacher, student=student, residual=None)
    assert run.network("student")[0] == "simkd(resnet8_0.125_a, resnet8_0.25_a)"
    assert (run.step("student") / "images.png").exists()
    assert evaluate(run, quiet=True).dv.sums[-1].accuracy == run.figures("student")["dv"]["accuracy"]


@pytest.mark.slow
def test_the_recipe_for_digits_runs_at_a_twentieth(tmp_path: Path) -> None:
    few = ("student.method.synthesis_steps=3", "runtime.threads=1")
    recipe = load(RECIPES / "data_free" / "digits.yaml", few).scaled(0.05)
    assert recipe.schedule.epochs == 2
    run = run_recipe(recipe, tmp_path / "run", quiet=True)
    assert (run.step("student") / "images.png").exists()


@pytest.mark.parametrize("path", sorted((RECIPES / "data_free").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_without_data_names_what_exists(path: Path) -> None:
    recipe = load(path)
    assert recipe.name.startswith("data_free_")
    assert issubclass(find(recipe.student.method)[0], DataFree)
