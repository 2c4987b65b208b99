"""Fixed memory for one network at one batch size: its input and its output stay where they are from run to run.

On a GPU onnxruntime would otherwise allocate both anew in every run, and copy by way of memory of its own. A captured
CUDA graph needs it, since it goes on reading and writing the addresses that it was captured with. On a CPU the same
code works, which is how it is tested, and gains nothing: there a run is handed the rows as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

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
    """

    def __init__(
        self,
        session: Any,
        input_: tuple[str, tuple[int, ...]],
        output: tuple[str, tuple[int, ...]],
        device: str,
        number: int = 0,
        graph: int | None = None,
    ) -> None:
        self._session = session
        self._host = np.zeros(input_[1], np.float32)
        self._input = onnxruntime.OrtValue.ortvalue_from_numpy(self._host, device, number)
        self._output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output[1], np.float32, device, number)
        self._shares_memory = device == "cpu"
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(input_[0], self._input)
        self._binding.bind_ortvalue_output(output[0], self._output)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry(GRAPH_ID, NO_GRAPH if graph is None else str(graph))

    def run(self, rows: Floats) -> Floats:
        """Run the network.

        Args:
            rows: as many as there is room for, or fewer; what is in the other rows changes nothing in these.

        Returns:
            The output's rows for them, in memory of their own.
        """
        count = len(rows)
        self._host[:count] = rows
        if not self._shares_memory:
            self._input.update_inplace(self._host)
        self._session.run_with_iobinding(self._binding, self._options)
        found: Floats = self._output.numpy()[:count]
        return found.copy() if self._shares_memory else found
