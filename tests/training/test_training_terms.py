"""What each method hands to its loss: which maps, whose, and in which place; against the whole term in NumPy's float64.

The teacher's maps are half as large as the student's, and every stage has a shape of its own. Vectors and logits lie so
far apart that float32 gives divergences between them to six digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training import definitions
from tests.training.definitions import Array
from tests.training.networks import batch, training_set
from training import models
from training.methods.base import Method, Networks, find
from training.methods.distiller import features
from training.models import Network
from training.models.contract import Features

pytestmark = pytest.mark.train

BATCH = batch(0, 1, 2, 3, 3, 2, 1, 0, side=16)
STAGES = 1, 2, 3
WEIGHTS = {"weight": 3.0, "ce": 0.5, "kd": 0.25}
SETTINGS: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 6},
    "crd_kd": {"negatives": 6},
    "fsp": {"keep": True},
    "semckd": {"soft": 0.5},
}


def telling(name: str) -> Network:
    """A network in eval mode that finds the images unlike: vectors of mean zero, and logits that are large."""
    net = models.build(name, 4)
    assert isinstance(net, Network)
    net.pool = nn.Sequential(net.pool, nn.BatchNorm1d(net.classifier.in_features))
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        net(BATCH.images)
        net.classifier.weight.mul_(10)
    return net.eval()


def made(name: str, **settings: Any) -> Method:
    """A method in eval mode."""
    kind, config = find({"name": name, **settings})
    torch.manual_seed(0)
    student, teacher = telling("resnet8_0.25_a"), telling("resnet8_0.5_a").requires_grad_(requires_grad=False)
    teacher.stem = nn.Sequential(teacher.stem, nn.AvgPool2d(2))
    return kind(config, Networks(student, teacher), training_set(size=16, batch_size=8)).eval()


def exact(x: Tensor) -> Array:
    found: Array = x.detach().double().numpy()
    return found


def shrunk(s: Tensor, t: Tensor) -> tuple[Tensor, Array]:
    """The student's map, pooled by NumPy to the size of the teacher's, as a tensor; the teacher's."""
    one, other = definitions.matched(exact(s), exact(t))
    return torch.from_numpy(one).float(), other


def linear(x: Array, layer: nn.Linear) -> Array:
    return x @ exact(layer.weight).T + exact(layer.bias)


def rows(x: Array) -> Array:
    return np.stack([definitions.normalised(row) for row in x])


def rkd(how: Any, s: Features, t: Features) -> float:
    vectors = exact(s.maps[-1]), exact(t.maps[-1])
    return 25 * definitions.rkd_distance(*vectors) + 50 * definitions.rkd_angle(*vectors)


def vid(how: Any, s: Features, t: Features) -> float:
    total = 0.0
    for guess, stage in zip(how.guesses, STAGES, strict=True):
        one, other = shrunk(s.maps[stage], t.maps[stage])
        mean, variance = guess(one)
        total += definitions.vid(exact(mean), exact(variance), other)
    return total


def srrl(how: Any, s: Features, t: Features) -> float:
    teacher = how.nets.teacher
    vector = exact(how.connector(s.maps[-1][:, :, None, None]))
    weight, bias = exact(teacher.classifier.weight), exact(teacher.classifier.bias)
    return definitions.srrl(vector, exact(t.maps[-1]), weight, bias, exact(t.logits))


def semckd(how: Any, s: Features, t: Features) -> float:
    def embedded(x: Tensor, embedding: Any) -> Array:
        first, _, second = embedding.layers
        flat = exact(x).reshape(8, -1)
        return rows(linear(np.maximum(linear(flat @ flat.T, first), 0), second))

    queries = [embedded(s.maps[stage], embedding) for stage, embedding in zip(STAGES, how.queries, strict=True)]
    keys = [embedded(t.maps[stage], embedding) for stage, embedding in zip(STAGES, how.keys, strict=True)]
    apart = np.empty((8, 3, 3))
    for i in range(3):
        for j in range(3):
            side = min(s.maps[i + 1].shape[2], t.maps[j + 1].shape[2])
            one = torch.from_numpy(definitions.pooled(exact(s.maps[i + 1]), side)).float()
            guess, target = exact(how.projections[i][j](one)), definitions.pooled(exact(t.maps[j + 1]), side)
            apart[:, i, j] = ((guess - target) ** 2).mean((1, 2, 3))
    return definitions.semckd(np.stack(queries, 1), np.stack(keys, 1), 0.5, apart)


def crd(how: Any, s: Features, t: Features) -> float:
    ours, theirs = (
        rows(linear(exact(s.maps[-1]), how.embed_student)),
        rows(linear(exact(t.maps[-1]), how.embed_teacher)),
    )
    index = torch.cat([BATCH.index[:, None], how.others.draw(BATCH.labels, 6)], 1)
    total = 0.0
    for vectors, bank in ((ours, how.teacher_bank), (theirs, how.student_bank)):
        scores = np.exp(np.einsum("bd,bmd->bm", vectors, exact(bank.rows)[index.numpy()]) / 0.07)
        total += definitions.crd(scores, float(scores.mean()) * 16, 16)
    return total


def fsp(how: Any, s: Features, t: Features) -> float:
    ours = [exact(connect(x)) for connect, x in zip(how.connectors, s.maps, strict=False)]
    theirs = [exact(x) for x in t.maps]
    return sum(definitions.fsp(ours[place : place + 2], theirs[place : place + 2]) for place in range(3))


TERMS: dict[str, Callable[[Any, Features, Features], float]] = {
    "fitnet": lambda how, s, t: definitions.hint(exact(how.regressor(s.maps[2])), exact(t.maps[2])),
    "at": lambda how, s, t: sum(definitions.at(exact(s.maps[stage]), exact(t.maps[stage])) for stage in STAGES),
    "sp": lambda how, s, t: definitions.sp(exact(s.maps[3]), exact(t.maps[3])),
    "cc": lambda how, s, t: definitions.cc(
        linear(exact(s.maps[4]), how.embed_student), linear(exact(t.maps[4]), how.embed_teacher)
    ),
    "vid": vid,
    "rkd": rkd,
    "pkt": lambda how, s, t: definitions.pkt(exact(s.maps[4]), exact(t.maps[4])),
    "ft": lambda how, s, t: definitions.ft(exact(how.translator(s.maps[3])), exact(how.paraphraser.encoder(t.maps[3]))),
    "nst": lambda how, s, t: sum(definitions.nst(exact(s.maps[stage]), exact(t.maps[stage])) for stage in STAGES),
    "crd": crd,
    "crd_kd": crd,
    "srrl": srrl,
    "semckd": semckd,
    "fsp": fsp,
}


@pytest.mark.parametrize("name", TERMS)
def test_a_method_compares_what_its_definition_says(name: str) -> None:
    how = made(name, **WEIGHTS, **SETTINGS.get(name, {}))
    s, t = (features(net, BATCH.images) for net in (how.student, how.nets.teacher))
    torch.manual_seed(7)
    found = {key: loss.item() for key, loss in how.losses(BATCH).items()}
    torch.manual_seed(7)
    ours, theirs = exact(s.logits), exact(t.logits)
    labelled = -float(np.log(definitions.shares(ours))[np.arange(8), BATCH.labels.numpy()].mean())
    expected = {"ce": 0.5 * labelled, "kd": 0.25 * definitions.kl(ours, theirs, 4.0), name: 3 * TERMS[name](how, s, t)}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_simkd_compares_the_maps_where_it_cuts_and_the_logits_that_the_teacher_makes_of_them(stages: int) -> None:
    how: Any = made("simkd", loss="both", stages=stages)
    student, teacher = how.student, how.nets.teacher
    images, cut = BATCH.images, 3 - stages
    small, target = shrunk(student.run_to(images, cut), teacher.run_to(images, cut))
    _, *projector = how.fronts[0]
    guess = nn.Sequential(*projector)(small)
    logits = [exact(teacher.run_from(x, cut)) for x in (guess, torch.from_numpy(target).float())]
    expected = {"input": definitions.hint(exact(guess), target), "output": definitions.hint(*logits)}
    assert {key: loss.item() for key, loss in how.losses(BATCH).items()} == pytest.approx(expected, rel=1e-5)
