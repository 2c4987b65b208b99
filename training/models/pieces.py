"""Take a model apart that was not made for it: trace it, find where it can be left, and make a module of each part."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import StochasticDepth

from training.models.blocks import Activated
from training.models.shapes import without_numbers

Blank = Callable[[], nn.Module]
LEAVES = [StochasticDepth, ShiftedWindowAttention]  # what they do depends on whether they train, so they stay whole
RIM = 0.75  # a map less than this much smaller has lost its rim only
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Place:
    """Where a network can be left.

    Attributes:
        node: its name in the traced graph.
        channels: of the map there.
        channels_last: the map is (B, H, W, C) inside the model; it is (B, C, H, W) outside in any case.
    """

    node: str
    channels: int
    channels_last: bool


def traced(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """The model's graph, nothing of which works in place, and where in the model each node is."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    tracer = NodePathTracer(leaf_modules=LEAVES)
    tracer.proxy_buffer_attributes = True  # otherwise they are copied into the graph, and stay behind
    graph = tracer.trace(model)
    for node in graph.nodes:
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
    return graph, tracer.node_to_qualname


def last_node(graph: fx.Graph) -> fx.Node:
    """What the graph gives back."""
    (result,) = graph.output_node().all_input_nodes
    return result


def linear_at(model: nn.Module, node: fx.Node) -> nn.Linear | None:
    """The linear layer that a node calls."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, nn.Linear) else None


def is_relu(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a ReLU, as a module or as a function."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, functional.relu)


def piece(model: nn.Module, nodes: dict[str, fx.Node], start: Place | None, stop: Place) -> nn.Module:
    """The part of a model after one place and up to another; a ReLU at its end can be left out."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    if start is not None:
        entry = graph.placeholder("x")
        made[nodes[start.node]] = (
            graph.call_method("permute", (entry, *CHANNELS_LAST)) if start.channels_last else entry
        )

    def take(node: fx.Node) -> fx.Node:
        """A node's copy; parameters are fetched where they are first used, the rest is there already."""
        if node not in made:
            made[node] = graph.node_copy(node, take)
        return made[node]

    names = list(nodes)
    first = 0 if start is None else names.index(start.node) + 1
    for name in names[first : names.index(stop.node)]:
        if nodes[name].op != "get_attr":
            take(nodes[name])
    last = nodes[stop.node]
    if is_relu(model, last):
        graph.output(take(last.all_input_nodes[0]))
        return Activated(fx.GraphModule(model, graph))
    result = take(last)
    graph.output(graph.call_method("permute", (result, *CHANNELS_FIRST)) if stop.channels_last else result)
    return fx.GraphModule(model, graph)


class Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of what each node gives."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else ()
        return result


def narrow(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Nodes that everything flows through, and the node after each. Parameters do not count, images do."""
    nodes = [node for node in graph.nodes if node.op != "get_attr"]
    order = {node: number for number, node in enumerate(nodes)}
    reach = 0
    for number, (node, following) in enumerate(itertools.pairwise(nodes)):
        if number > 0 and reach <= number:
            yield node, following
        reach = max([reach, *(order[user] for user in node.users)])


def places_of(blank: Blank, size: int) -> list[Place]:
    """Where a model's stem and stages end, from the largest map to the smallest; empty if it has no maps.

    Maps that differ by a rim, as convolutions without padding leave it, count as one size.

    Raises:
        RuntimeError: the model cannot take images of this size.
    """
    model = without_numbers(blank)
    graph, paths = traced(model)
    Shapes(fx.GraphModule(model, graph)).run(torch.zeros(2, 3, size, size, device="meta"))
    found: dict[int, Place] = {}
    for node, following in narrow(graph):
        block, next_block = (paths.get(place, "").split(".")[:2] for place in (node, following))
        _, *shape = node.meta["shape"] or (0,)
        if block == next_block or len(shape) != 3:
            continue
        channels_last = shape[1] != shape[2]
        side = shape[0] if channels_last else shape[1]
        if side > 1 and side == shape[1]:
            found[side] = Place(node.name, shape[-1] if channels_last else shape[0], channels_last)
    sides = [*found, 0]
    return [found[side] for side, following in itertools.pairwise(sides) if following < RIM * side]
