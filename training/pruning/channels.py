"""Which channels of a network stand and fall together.

The network is traced, and every channel of every map gets a label. A convolution gives its outputs fresh ones; batch
norm, activations, pools and depthwise convolutions hand them on; an addition makes two labels one; a concatenation puts
them in a row. What remains are groups of channels, each of which can be taken out of all the convolutions, norms and
linear layers that it runs through without changing what the others compute, provided that it is zero everywhere. Batch
norm with weight and bias 0 makes it so, and everything that hands a label on keeps a zero a zero.

A channel is left alone where that does not hold: where no batch norm follows its convolution at once, where a batch
norm reads a sum, and where anything happens to it that is not known here, such as a shuffle or a gate.

torch-pruning finds such groups too; it is not used, since it cut networks with option-A shortcuts to other logits than
those of the silenced network, and failed on both ShuffleNets.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

from training.models.pieces import LEAVES, Shapes
from training.models.resnet import SubsampleAndPad

Labels = NDArray[np.int64]

FIXED = 0
ZERO = -1  # the channels that a shortcut without parameters adds
SAME_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Identity, nn.Dropout, nn.Hardswish, nn.SiLU),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
SAME_FUNCTIONS = {
    *(torch.relu, functional.relu, functional.relu6, functional.dropout),
    *(functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
}
NUMBERS = {getattr, "size", "dim"}
SUMS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Channels:
    """Groups of channels, as labels; 0 marks what has to stay.

    Attributes:
        outputs: convolution, batch norm, or shortcut without parameters -> the label of each channel it gives.
        inputs: convolution, linear layer, or such a shortcut -> the label of each channel it reads.
        norms: batch norms whose channels belong to groups.
        added: labels that an addition has met.
    """

    outputs: dict[str, Labels]
    inputs: dict[str, Labels]
    norms: tuple[str, ...]
    added: frozenset[int]


def channels_of(net: nn.Module, size: int) -> Channels:
    """Trace a network and group its channels; it stays as it is.

    Args:
        net: images (B, 3, size, size) -> logits (B, K).
        size: pixels a side.
    """
    training = net.training
    try:
        graph = _Tracer().trace(net.eval())
        where = next((parameter.device for parameter in net.parameters()), None)
        with torch.no_grad():
            Shapes(fx.GraphModule(net, graph)).run(torch.zeros(1, 3, size, size, device=where))
    finally:
        net.train(training)
    return _Walk(dict(net.named_modules())).through(graph)


class _Tracer(fx.Tracer):
    """Stops at the modules whose insides tell nothing of channels."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether to stop."""
        return isinstance(m, (SubsampleAndPad, *LEAVES)) or super().is_leaf_module(m, module_qualified_name)


@dataclass
class _Walk:
    """One pass over a graph. `parents` is a union-find forest; label 0 is the root of whatever it is joined with."""

    modules: dict[str, nn.Module]
    parents: list[int] = field(default_factory=lambda: [FIXED])
    labels: dict[fx.Node, Labels] = field(default_factory=dict)
    outputs: dict[str, Labels] = field(default_factory=dict)
    inputs: dict[str, Labels] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    added: set[int] = field(default_factory=set)

    def through(self, graph: fx.Graph) -> Channels:
        """Label every node."""
        for node in graph.nodes:
            if len(node.meta.get("shape", ())) >= 2 and node.op != "output":
                self.labels[node] = self.module(node) if node.op == "call_module" else self.function(node)
            elif node.target not in NUMBERS:
                self.fix(node)
        return Channels(
            {name: self.roots(labels) for name, labels in self.outputs.items()},
            {name: self.roots(labels) for name, labels in self.inputs.items()},
            tuple(self.norms),
            frozenset(self.root(label) for label in self.added),
        )

    def root(self, label: int) -> int:
        """The label that stands for a group."""
        while self.parents[label] != label:
            label = self.parents[label]
        return label

    def roots(self, labels: Labels) -> Labels:
        """The groups' labels; a channel of zeros has to stay where nothing but an addition reads it."""
        return np.array([FIXED if label == ZERO else self.root(int(label)) for label in labels], dtype=np.int64)

    def join(self, one: int, other: int) -> None:
        """Make two groups one."""
        low, high = sorted((self.root(one), self.root(other)))
        self.parents[high] = low

    def fresh(self, count: int) -> Labels:
        """New labels."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def fix(self, node: fx.Node) -> Labels:
        """Nothing that a node reads may go, nor anything that it gives."""
        for source in node.all_input_nodes:
            for label in self.labels.get(source, ()):
                if label != ZERO:
                    self.join(int(label), FIXED)
        shape = node.meta.get("shape") or (1, 0)
        return np.full(shape[1] if len(shape) > 1 else 0, FIXED, dtype=np.int64)

    def of(self, node: fx.Node) -> Labels:
        """What a node's first input carries."""
        return self.labels[node.all_input_nodes[0]]

    def module(self, node: fx.Node) -> Labels:
        """What a module makes of labels. A subclass may do anything, so it is not taken for its base."""
        name, module = str(node.target), self.modules[str(node.target)]
        if name in self.outputs or name in self.inputs:  # a second call of the same weights
            self.fixed_module(name)
            return self.fix(node)
        kind = type(module)
        if kind is nn.Conv2d:
            return self.convolution(node, name, module)
        if kind is nn.BatchNorm2d:
            return self.norm(node, name, module)
        if kind is nn.Linear and len(node.meta["shape"]) == 2:
            self.inputs[name] = self.of(node)
            return self.fix_nothing(node)
        if kind is SubsampleAndPad:
            return self.padded(node, name, module)
        if kind is nn.Flatten:
            return self.flattened(node)
        return self.of(node) if kind in SAME_MODULES or isinstance(module, LEAVES[0]) else self.fix(node)

    def fixed_module(self, name: str) -> None:
        """A module's channels have to stay."""
        for labels in (self.outputs.get(name, ()), self.inputs.get(name, ())):
            for label in labels:
                self.join(int(label), FIXED)

    def fix_nothing(self, node: fx.Node) -> Labels:
        """Outputs that stay, whatever becomes of the inputs."""
        return np.full(node.meta["shape"][1], FIXED, dtype=np.int64)

    def convolution(self, node: fx.Node, name: str, module: Any) -> Labels:
        """Fresh outputs if a batch norm is all that reads them; a depthwise one hands its labels on."""
        gated = len(node.users) == 1 and all(
            user.op == "call_module" and type(self.modules[str(user.target)]) is nn.BatchNorm2d for user in node.users
        )
        if module.groups == 1:
            self.inputs[name] = self.of(node)
            labels = self.fresh(module.out_channels) if gated else self.fix_nothing(node)
        elif gated and module.groups == module.in_channels == module.out_channels:
            labels = self.of(node)
        else:
            return self.fix(node)
        self.outputs[name] = labels
        return labels

    def norm(self, node: fx.Node, name: str, module: Any) -> Labels:
        """The convolution's labels."""
        source = node.all_input_nodes[0]
        follows = source.op == "call_module" and type(self.modules[str(source.target)]) is nn.Conv2d
        if not follows or not module.affine:
            return self.fix(node)
        self.norms.append(name)
        self.outputs[name] = self.of(node)
        return self.of(node)

    def padded(self, node: fx.Node, name: str, module: Any) -> Labels:
        """The input's labels between channels of zeros, whose own are those of what they are added to."""
        if len(node.users) != 1 or next(iter(node.users)).target not in SUMS:
            return self.fix(node)
        before, after = (np.full(count, ZERO, dtype=np.int64) for count in (module.before, module.after))
        self.inputs[name] = self.of(node)
        return np.concatenate([before, self.of(node), after])

    def flattened(self, node: fx.Node) -> Labels:
        """Each channel's label once a pixel."""
        shape = node.all_input_nodes[0].meta["shape"]
        pixels = int(np.prod(shape[2:]))
        return np.repeat(self.of(node), pixels)

    def function(self, node: fx.Node) -> Labels:
        """What a function or a method makes of labels."""
        if node.target in SUMS and len(node.all_input_nodes) == 2:
            return self.total(node)
        if node.target is torch.cat and (node.kwargs.get("dim") == 1 or node.args[1:] == (1,)):
            row = np.concatenate([self.labels[source] for source in node.all_input_nodes])
            return row if len(row) == node.meta["shape"][1] else self.fix(node)
        if node.target in SAME_FUNCTIONS:
            return self.of(node)
        if node.target == "mean" and node.args[1:] in (((2, 3),), ([2, 3],)):
            return self.of(node)
        if node.target in (torch.flatten, "flatten") and node.args[1:] == (1,):
            return self.flattened(node)
        return self.fix(node)

    def total(self, node: fx.Node) -> Labels:
        """One label for two; zeros change nothing."""
        one, other = (self.labels[source] for source in node.all_input_nodes)
        if len(one) != len(other):
            return self.fix(node)
        for left, right in zip(one.tolist(), other.tolist(), strict=True):
            self.added.update({left, right} - {ZERO})
            if ZERO not in (left, right):
                self.join(left, right)
        total = np.where(one == ZERO, other, one)
        for source in node.all_input_nodes:
            if str(source.target) in self.inputs and type(self.modules[str(source.target)]) is SubsampleAndPad:
                self.outputs[str(source.target)] = total
        return total
