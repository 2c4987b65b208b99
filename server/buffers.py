"""Fixed memory for one network at one batch size: its input and its output stay where they are from run to run.

On a GPU onnxruntime would otherwise allocate both anew in every run, and copy by way of memory of its own. A captured
CUDA graph needs it, since it goes on reading and writing the addresses that it was captured with. On a CPU the same
code works, which is how it is tested, and gains nothing: there a run is handed the rows as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from cascade.exits import Floats

GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"


class Buffers:
    """Input and output of one session at one batch size.

    Args:
        session: of onnxruntime.
        input_: name and shape of the input, batch included.
        output: name and shape of the output.
        device: `cpu` or `cuda`.
        number: of the device.
        graph: number of the CUDA graph that is captured in the first run and repeated in all others; None for none.
        dtype: of the input, `float32` or `uint8`.
        memory: makes the host's side of the input, an array of a shape and an element type.
    """

    def __init__(
        self,
        session: Any,
        input_: tuple[str, tuple[int, ...]],
        output: tuple[str, tuple[int, ...]],
        device: str,
        number: int = 0,
        graph: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        memory: Callable[[tuple[int, ...], DTypeLike], NDArray[Any]] = np.zeros,
    ) -> None:
        self._session, self._bound, self._result = session, input_[0], output[0]
        self._host = memory(input_[1], dtype)
        self._input = onnxruntime.OrtValue.ortvalue_from_numpy(self._host, device, number)
        self._output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output[1], np.float32, device, number)
        self._shares_memory = device == "cpu"
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(input_[0], self._input)
        self._binding.bind_ortvalue_output(output[0], self._output)
        self._options = _options(NO_GRAPH if graph is None else str(graph))

    def run(self, given: Mapping[str, NDArray[Any]]) -> Floats:
        """Run the network.

        Args:
            given: name -> rows, as many as there is room for, or fewer; what is in the other rows changes nothing in
                these. What is more than the bound input alone, as floats are for a graph that takes pixels, is run
                without it.

        Returns:
            The output's rows for them, in memory of their own.
        """
        if len(given) > 1:
            return self._run_unbound(given)
        rows = given[self._bound]
        count = len(rows)
        self._host[:count] = rows
        if not self._shares_memory:
            self._input.update_inplace(self._host)
        self._session.run_with_iobinding(self._binding, self._options)
        found: Floats = self._output.numpy()[:count]
        return found.copy() if self._shares_memory else found

    def _run_unbound(self, given: Mapping[str, NDArray[Any]]) -> Floats:
        """Run at the same batch size, in memory of onnxruntime's own; no graph was captured with that."""
        count = len(given[self._bound])
        missing = [(0, len(self._host) - count), (0, 0), (0, 0), (0, 0)]
        padded = {name: np.pad(rows, missing) for name, rows in given.items()}
        logits: Floats = self._session.run([self._result], padded, _options(NO_GRAPH))[0]
        return logits[:count]


def _options(graph: str) -> Any:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(GRAPH_ID, graph)
    return options
