"""ONNX graphs, written a node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper


class Nodes:
    """The nodes and initialisers of one graph, in order; calling it appends a node.

    Args:
        prefix: of every name made here; a graph and its branches must not share names.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._constants: dict[bytes, str] = {}
        self._shapes: list[ValueInfoProto] = []

    def __call__(self, kind: str, *inputs: str, name: str = "", outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Append a node and give the name of its first output.

        Args:
            kind: operator of ONNX.
            inputs: names; an empty one is an input left out.
            name: of the output; one is made up where it is left out.
            outputs: names, where there are several.
            attributes: of the node.
        """
        names = list(outputs) or [name or f"{self._prefix}{kind}_{len(self._nodes)}"]
        self._nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names[0]

    def cast(self, value: str, to: int) -> str:
        """Convert to an element type, such as `TensorProto.FLOAT`."""
        return self("Cast", value, to=to)

    def constant(self, value: NDArray[Any]) -> str:
        """An initialiser; equal values share one."""
        tensor = numpy_helper.from_array(value)
        key = tensor.SerializeToString()
        if key not in self._constants:
            tensor.name = f"{self._prefix}constant_{len(self._constants)}"
            self._constants[key] = tensor.name
            self._weights[tensor.name] = tensor
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """An initialiser of int64 numbers, (n,)."""
        return self.constant(np.array(values, np.int64))

    def embed(self, graph: GraphProto) -> str:
        """Take a graph's nodes and weights in, whose input some node here has made; gives the name of its output."""
        self._nodes.extend(graph.node)
        self._weights.update((weight.name, weight) for weight in graph.initializer)
        return str(graph.output[0].name)

    def graph(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """All of it as a graph."""
        weights = list(self._weights.values())
        return helper.make_graph(self._nodes, name, inputs, outputs, weights, value_info=self._shapes)

    def shaped(self, value: ValueInfoProto) -> None:
        """Say the shape of something made here that no inference can know."""
        self._shapes.append(value)
