"""What the feature methods share: benchmarks' weights, networks that fit or do not, and whole runs of each."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cascade.errors import RecipeError
from tests.tiny_run import DOCUMENT, tiny_recipe, train_tiny
from tests.training import loops
from tests.training.networks import Says, batch, frozen, networks, same, state, training_set
from training import models
from training.evaluate import evaluate
from training.methods.base import METHODS, Batch, Method, Networks, TrainingSet, find, import_all
from training.methods.distiller import Distiller, DistillerConfig, shapes_of
from training.methods.dml import DML
from training.methods.fitnet import Regressor
from training.methods.ft import Paraphraser
from training.methods.semckd import projection
from training.methods.vid import Guess
from training.models import Network
from training.rehearsal import rehearse
from training.run import Run

pytestmark = pytest.mark.train

import_all()
NAMES = sorted(METHODS)
FEATURES = sorted(name for name, kind in METHODS.items() if issubclass(kind, Distiller))
LABELS = [0, 1, 2, 3] * 4
QUICK = {"epochs": 2, "batch_size": 32, "lr": 0.02, "policy": "cosine"}
SMALL = "resnet8_0.125_a"


def made(name: str, nets: Networks | None = None, data: TrainingSet | None = None, **settings: Any) -> Method:
    kind, config = find({"name": name, **settings})
    return kind(config, nets or networks(), data or training_set())


@pytest.mark.parametrize(
    ("name", "bench", "expected"),
    [
        ("fitnet", "crd", (1, 0, 100)),
        ("fitnet", "simkd", (1, 1, 100)),
        ("at", "crd", (1, 0, 1000)),
        ("at", "simkd", (1, 1, 1000)),
        ("sp", "crd", (1, 0, 3000)),
        ("sp", "simkd", (1, 1, 3000)),
        ("cc", "crd", (1, 0, 0.02)),
        ("vid", "crd", (1, 0, 1)),
        ("vid", "simkd", (1, 1, 1)),
        ("rkd", "crd", (1, 0, 1)),
        ("pkt", "crd", (1, 0, 30000)),
        ("ab", "crd", (1, 0, 1)),
        ("ft", "crd", (1, 0, 200)),
        ("fsp", "crd", (1, 0, 50)),
        ("nst", "crd", (1, 0, 50)),
        ("crd", "crd", (1, 0, 0.8)),
        ("crd", "simkd", (1, 1, 0.8)),
        ("crd_kd", "crd", (1, 1, 0.8)),
        ("srrl", "simkd", (1, 1, 1)),
        ("semckd", "simkd", (1, 1, 400)),
    ],
)
def test_weights_are_those_of_the_benchmark(name: str, bench: str, expected: tuple[float, ...]) -> None:
    config = find({"name": name, "bench": bench})[1]
    assert isinstance(config, DistillerConfig)
    assert (config.ce, config.kd, config.weight) == expected
    assert config.t == 4


def test_the_hint_is_where_the_benchmark_has_it() -> None:
    hints = [find({"name": "fitnet", "bench": bench})[1].model_dump()["hint"] for bench in ("crd", "simkd")]
    assert hints == [2, 1]


@pytest.mark.parametrize(("name", "bench"), [("cc", "simkd"), ("srrl", "crd")])
def test_a_benchmark_without_the_method_is_refused(name: str, bench: str) -> None:
    with pytest.raises(RecipeError, match=f"the {bench} benchmark has no such method: say bench: "):
        find({"name": name, "bench": bench})


@pytest.mark.parametrize("bench", ["imagenet", None, []])
@pytest.mark.parametrize("name", ["kd", "at"])
def test_an_unknown_benchmark_is_refused(name: str, bench: Any) -> None:
    with pytest.raises(RecipeError, match="bench: "):
        find({"name": name, "bench": bench})


@pytest.mark.parametrize("name", FEATURES)
def test_what_is_given_goes_before_the_benchmark(name: str) -> None:
    kept = {"keep": True} if name == "fsp" else {}
    config = find({"name": name, "ce": 0.5, "kd": 0.25, "t": 2, "weight": 3, **kept})[1].model_dump()
    assert (config["ce"], config["kd"], config["t"], config["weight"]) == (0.5, 0.25, 2, 3)


def test_a_loss_is_multiplied_by_its_weight_and_left_out_without_one() -> None:
    usual, other = made("at", kd=1).eval(), made("at", ce=3, kd=2, weight=10).eval()
    before, after = usual.losses(batch(*LABELS)), other.losses(batch(*LABELS))
    assert {key: (after[key] / before[key]).item() for key in before} == pytest.approx({"ce": 3, "kd": 2, "at": 0.01})
    assert set(made("at", ce=0).losses(batch(*LABELS))) == {"at"}


@pytest.mark.parametrize("bench", ["crd", "simkd"])
def test_kd_is_what_the_benchmark_means_by_it(bench: str) -> None:
    nets = Networks(Says([1.0, 2.0]), Says([3.0, 0.0]))
    found = made("kd", nets, bench=bench).losses(batch(1))
    p = torch.tensor([3.0, 0.0]).div(4).softmax(0)
    expected = 16 * float((p * (p.log() - torch.tensor([1.0, 2.0]).div(4).log_softmax(0))).sum())
    weights = {"crd": (0.9, 0.1), "simkd": (1, 1)}[bench]
    ce = math.log(1 + math.exp(-1))
    assert {key: value.item() for key, value in found.items()} == pytest.approx(
        {"ts": weights[0] * expected, "ce": weights[1] * ce}, rel=1e-5
    )


def test_a_method_that_compares_nothing_says_what_is_missing() -> None:
    class Empty(Distiller):
        name = "empty"

        class Config(DistillerConfig):
            BENCHES = {"crd": {}}  # noqa: RUF012 - as short as a test may be

    with pytest.raises(NotImplementedError, match="'empty' must define compare"):
        Empty(Empty.Config(), networks(), training_set()).losses(batch(*LABELS))


def test_looking_at_a_network_leaves_no_trace() -> None:
    net = networks().student
    assert isinstance(net, Network)
    net.stages[1].eval()
    before, modes, dice = state(net), [module.training for module in net.modules()], torch.get_rng_state()
    assert shapes_of(net, 8) == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (16, 2, 2), (16,)]
    assert same(state(net), before)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), dice)


@pytest.mark.parametrize("part", ["student", "teacher"])
@pytest.mark.parametrize("name", FEATURES)
def test_a_network_without_features_is_refused(name: str, part: str) -> None:
    nets = networks()
    plain = Says([0.0] * 4)
    nets = Networks(plain, nets.teacher) if part == "student" else Networks(nets.student, plain)
    with pytest.raises(RecipeError, match=f"'{name}' compares features, and the {part} gives none"):
        made(name, nets)


@pytest.mark.parametrize("teacher", ["resnet8_0.5_a", "resnet14x4", "resnet8_0.125_a"])
@pytest.mark.parametrize("name", FEATURES)
def test_teachers_of_other_widths_and_depths_fit(name: str, teacher: str) -> None:
    trained = made(name, Networks(models.build("resnet8_0.25_a", 4), frozen(teacher, 1)))
    assert all(torch.isfinite(loss) for loss in trained.losses(batch(*LABELS)).values())


@pytest.mark.parametrize(
    ("teacher", "student"), [("vgg13", "mobilenetv2_half"), ("resnet32x4", "shufflenetv2"), ("wrn_40_2_preact", "vgg8")]
)
def test_pairs_of_different_families_fit(teacher: str, student: str) -> None:
    nets = Networks(models.build(student, 4), models.build(teacher, 4))
    for name in FEATURES:
        assert list(made(name, nets, training_set(size=32)).trainable())


class Halves(nn.Module):
    """A network's stem whose map is pooled to another size."""

    def __init__(self, net: Network, side: int) -> None:
        super().__init__()
        self.stem, self.side = net.stem, side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.stem(images)
        return nn.functional.adaptive_avg_pool2d(x, self.side)


def seeing(net: nn.Module, side: int) -> nn.Module:
    """The same network, all its maps smaller."""
    assert isinstance(net, Network)
    net.stem = Halves(net, side)
    return net


@pytest.mark.parametrize(("student_side", "teacher_side"), [(8, 4), (4, 8)])
@pytest.mark.parametrize("name", FEATURES)
def test_teachers_whose_maps_are_twice_or_half_as_large_fit(name: str, student_side: int, teacher_side: int) -> None:
    student = seeing(models.build("resnet8_0.25_a", 4), student_side)
    trained = made(name, Networks(student, seeing(frozen("resnet8_0.5_a", 1), teacher_side)))
    for how in (trained, *(phase.method for phase in trained.phases())):
        assert all(torch.isfinite(loss) for loss in how.losses(batch(*LABELS)).values())


@pytest.mark.parametrize("settings", [{"name": "ab"}, {"name": "fitnet", "hint": 1}])
def test_maps_that_no_convolution_brings_together_are_refused(settings: dict[str, Any]) -> None:
    student = seeing(models.build("resnet8_0.25_a", 4), 3)
    kind, config = find(settings)
    with pytest.raises(RecipeError, match="3 x 3 to the teacher's 8 x 8: take a student whose maps are as large"):
        kind(config, Networks(student, frozen("resnet8_0.5_a", 1)), training_set())


def test_the_simkd_benchmark_pools_the_teacher_where_no_convolution_fits() -> None:
    student = seeing(models.build("resnet8_0.25_a", 4), 3)
    trained = made("fitnet", Networks(student, frozen("resnet8_0.5_a", 1)), bench="simkd")
    assert torch.isfinite(trained.losses(batch(*LABELS))["fitnet"])


@pytest.mark.parametrize(
    ("sides", "kind", "kernel", "after"),
    [
        ((8, 4), nn.Conv2d, 3, 4),
        ((4, 8), nn.ConvTranspose2d, 4, 8),
        ((8, 8), nn.Conv2d, 1, 8),
        ((7, 5), nn.Conv2d, 3, 5),
    ],
)
def test_a_regressor_is_the_convolution_that_the_sizes_ask_for(
    sides: tuple[int, int], kind: type[nn.Module], kernel: int, after: int
) -> None:
    regressor = Regressor("fitnet", (3, sides[0], sides[0]), (5, sides[1], sides[1]))
    convolution, norm, relu = regressor.layers
    assert isinstance(convolution, kind)
    assert convolution.state_dict()["weight"].shape[2:] == (kernel, kernel)
    assert convolution.bias is not None
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(relu, nn.ReLU)
    assert regressor(torch.randn(2, 3, sides[0], sides[0])).shape == (2, 5, after, after)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_helpers_have_the_parameters_that_their_definitions_give() -> None:
    assert count(Guess(3, 5)) == 3 * 5 + 2 * 5 * 5 + 5
    assert count(Paraphraser(8)) == 2 * 9 * (8 * 8 + 8 * 4 + 4 * 4) + (8 + 4 + 4) + (4 + 8 + 8)
    assert count(projection(3, 5)) == 3 * 10 + 20 + 9 * 10 * 10 + 20 + 10 * 5


def test_a_variance_begins_at_five() -> None:
    torch.testing.assert_close(Guess(3, 5)(torch.zeros(1, 3, 2, 2))[1], torch.full((5,), 5.0))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fitnet", {"hint": 4}, "hint 4 is no map of both networks: take 0 to 3"),
        ("srrl", {}, "teacher that ends in one"),
    ],
)
def test_what_a_method_cannot_work_with_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    nets = networks()
    assert nets.teacher is not None
    if name == "srrl":
        nets.teacher.classifier = nn.Sequential(nn.Linear(32, 4))
    with pytest.raises(RecipeError, match=message):
        made(name, nets, **settings)


def test_semckd_needs_four_samples_a_batch() -> None:
    with pytest.raises(RecipeError, match="batches of 4 samples or more, not 3"):
        made("semckd", data=training_set(batch_size=3))


def test_a_peer_is_as_its_family_makes_it_and_another_network() -> None:
    trained = made("dml")
    assert isinstance(trained, DML)
    for own, others in zip(trained.student.parameters(), trained.peers[0].parameters(), strict=True):
        torch.testing.assert_close(own.flatten().sort().values, others.flatten().sort().values)
    assert not torch.equal(trained.student.stem[0].weight, trained.peers[0].stem[0].weight)  # type: ignore[index,union-attr]


def test_peers_may_be_named_and_all_learn() -> None:
    trained = made("dml", peers=[SMALL, "resnet8x4"])
    found = [set(trained.losses(replace(batch(*LABELS), turn=turn))) for turn in range(trained.turns())]
    assert found == [{"ce", "mutual"}, {"peer1_ce", "peer1_mutual"}, {"peer2_ce", "peer2_mutual"}]
    assert count(trained) == sum(count(models.build(name, 4)) for name in ("resnet8_0.25_a", SMALL, "resnet8x4"))


def test_a_network_is_not_moved_by_what_its_peers_should_learn_from_it() -> None:
    trained = made("dml")
    trained.losses(replace(batch(*LABELS), turn=1))["peer1_mutual"].backward()
    assert all(parameter.grad is None for parameter in trained.student.parameters())


class Watched(DML):
    """Notes whose weights have moved since the last time that losses were asked for."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        now = [[value.detach().clone() for value in net.parameters()] for net in (self.student, *self.peers)]
        before, self.seen = getattr(self, "seen", now), now
        self.moved = [
            *getattr(self, "moved", []),
            (batch.turn, [not same(a, b) for a, b in zip(before, now, strict=True)]),
        ]
        return super().losses(batch)


def test_dml_moves_its_networks_in_turn_and_each_learns_from_what_the_others_have_become(tmp_path: Path) -> None:
    trained = Watched(DML.Config(), Networks(models.build(SMALL, 10)), loops.seen(256))
    loops.trained(tmp_path, how=trained, step=loops.plan(tmp_path, epochs=1))
    batches = len(loops.digits().train) // 256
    first, *later = trained.moved
    assert first == (0, [False, False])
    assert later == [(1, [True, False]), (0, [False, True])] * (batches - 1) + [(1, [True, False])]


def quick(folder: Path, **changes: Any) -> Run:
    """Two epochs each on 144 digits."""
    data = {**DOCUMENT["data"], "dv_fraction": 0.9}
    teacher = {"model": SMALL, "method": {"name": "vanilla"}}
    return train_tiny(folder, **{"data": data, "schedule": QUICK, "teacher": teacher, "residual": None, **changes})


def residual(name: str) -> dict[str, Any]:
    return {"method": {"name": name}, "models": [SMALL], "stop": {"count": 1}}


@pytest.mark.parametrize("name", NAMES)
def test_two_epochs_on_digits_end_well(name: str, tmp_path: Path) -> None:
    briefly = {"synthesis_steps": 2} if "synthesis_steps" in METHODS[name].Config.model_fields else {}
    student: dict[str, Any] = {"model": SMALL, "method": {"name": name, **briefly}}
    if METHODS[name].needs_start:
        start = quick(tmp_path / "start", student={"model": SMALL, "method": {"name": "vanilla"}})
        student["start"] = str(start.folder)
    changes = {"residual": residual(name)} if name == "res_kd" else {"student": student}
    run = quick(tmp_path / "run", **changes)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["epoch"] for line in lines if line["step"] == run.stages()[-1]} == {1, 2}
    assert all(math.isfinite(value) for line in lines for key, value in line.items() if key.startswith("loss/"))


@pytest.mark.parametrize(
    "method",
    [{"name": "crd", "negatives": 64}, {"name": "pkt"}, {"name": "simkd_joint", "deploy": "student"}],
    ids=lambda method: method["name"],
)
def test_a_feature_method_can_train_the_student_that_res_students_correct(
    tiny_run: Run, tmp_path: Path, method: dict[str, Any]
) -> None:
    run = train_tiny(
        tmp_path / "run",
        teacher={"run": str(tiny_run.folder)},
        student={"model": "resnet8_0.25_a", "method": method},
        residual=residual("res_kd"),
    )
    assert [name for name in run.stages() if run.is_done(name)] == ["student", "residual1"]
    figures = evaluate(run, quiet=True).dv
    assert [sums.accuracy > 0.3 for sums in figures.sums] == [True, True]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "res_kd" and not METHODS[name].needs_start])
def test_any_method_may_train_the_student_that_res_students_correct(name: str, tmp_path: Path) -> None:
    rehearse(tiny_recipe(student={"model": SMALL, "method": {"name": name}}), tmp_path)


def test_a_pair_that_cannot_work_is_refused_before_the_data_is_read(tiny_run: Run, tmp_path: Path) -> None:
    for changes, message in (
        ({"method": {"name": "fitnet", "hint": 9}}, "student: .*hint 9"),
        ({"method": {"name": "semckd"}, "schedule": {"batch_size": 2}}, "student: .*batches of 4"),
    ):
        with pytest.raises(RecipeError, match=message):
            train_tiny(
                tmp_path / "run",
                data={"name": f"imagefolder:{tmp_path / 'nowhere'}", "size": 8},
                teacher={"run": str(tiny_run.folder)},
                student={"model": SMALL, **changes},
                residual=None,
            )
    assert not (tmp_path / "run").exists()
