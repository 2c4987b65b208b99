"""Compiled networks, whichever way they are entered: that graphs are made, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from cascade.manifest import Preprocess
from tests.training.networks import batch, frozen, networks, same, state, training_set
from training.compiled import compile_helpers, compile_network, uncompiled
from training.data import Batches, Split
from training.evaluate import logits_of
from training.methods.base import Method, find
from training.methods.simkd import SimKD
from training.models.contract import Network
from training.synthesis.statistics import watched

# torch's compiler looks at the .grad of maps that are no leaves, and would take its own warning for a failure.
pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

BATCH = batch(*[0, 1, 2, 3] * 4)
RULE = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
Graphs = list[fx.GraphModule]


class Counting:
    """A backend that keeps the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: Graphs = []

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def convolutions(self) -> int:
        """In all graphs together."""
        return sum(node.target is torch.conv2d for graph in self.graphs for node in graph.graph.nodes)


@pytest.fixture
def counting() -> Iterator[Counting]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def trained(name: str) -> Method:
    kind, config = find({"name": name.partition(".")[0]})
    return kind(config, networks(earlier=0), training_set()).train()


def first(method: Method, name: str) -> Method:
    return method.phases()[0].method.train() if "." in name else method


def convolutions(*nets: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for net in nets for module in net.modules())


# features; one map, and a projector; maps before a ReLU; a way through the teacher's stages; logits alone
@pytest.mark.parametrize("name", ["at", "simkd", "ab.init", "joint_rd", "kd"])
def test_every_way_into_a_network_runs_graphs_and_gives_the_same_losses(name: str, counting: Counting) -> None:
    plain, compiled = trained(name), trained(name)
    keys = list(compiled.state_dict())
    for net in (compiled.student, *compiled.nets.teachers):
        compile_network(net, backend=counting)
    compile_helpers(compiled, backend=counting)
    ours, theirs = (first(each, name).losses(BATCH) for each in (compiled, plain))
    assert {key: float(loss.detach()) for key, loss in ours.items()} == {
        key: float(loss.detach()) for key, loss in theirs.items()
    }
    assert list(compiled.state_dict()) == keys
    assert same(state(compiled), state(plain))
    projectors = compiled.fronts if isinstance(compiled, SimKD) else nn.ModuleList()
    assert counting.convolutions() >= convolutions(compiled.student, *compiled.nets.teachers, projectors)


def test_logits_alone_are_one_graph_and_maps_one_a_part(counting: Counting) -> None:
    net = frozen("resnet8_0.25_a", 1)
    assert isinstance(net, Network)
    compile_network(net, backend=counting)
    net(BATCH.images)
    assert len(counting.graphs) == 1
    net.features(BATCH.images)
    net.pre_pool(BATCH.images)
    assert len(counting.graphs) == 1 + 1 + len(net.stages)


def test_many_networks_are_not_too_many(counting: Counting) -> None:
    nets = [frozen(f"resnet8_{width}_a", 1) for width in (0.125, 0.25, 0.375, 0.5)]
    for net in nets:
        assert isinstance(net, Network)
        compile_network(net, backend=counting)
        net.features(BATCH.images)
    assert counting.convolutions() == convolutions(*nets)


def test_evaluation_makes_no_graphs(counting: Counting) -> None:
    net = frozen("resnet8_0.125_a", 1)
    compile_network(net, backend=counting)
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    split = Split(images, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert logits_of([net], split, Batches(RULE, torch.device("cpu")))[0].shape == (3, 4)
    assert counting.graphs == []


def test_batch_norms_of_a_compiled_network_are_watched(counting: Counting) -> None:
    net = frozen("resnet8_0.125_a", 1)
    compile_network(net, backend=counting)
    net(BATCH.images)
    with watched(net) as seen:
        net(BATCH.images)
    assert len(seen) == sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_what_is_uncompiled_for_a_while_is_compiled_again(counting: Counting) -> None:
    net = frozen("resnet8_0.125_a", 1)
    compile_network(net, backend=counting)
    with uncompiled():
        expected = net(BATCH.images)
    assert counting.graphs == []
    assert torch.equal(net(BATCH.images), expected)
    assert len(counting.graphs) == 1
