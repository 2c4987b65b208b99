"""Fixed memory for a network: the same answers, however few of its rows are used, and however often."""

from __future__ import annotations

import numpy as np
import pytest

from server.buffers import Buffers
from server.providers import Place, open_sessions
from server.runtime import OnnxRuntime, batch_sizes
from tests.builders import random_inputs, tiny_bundle


def test_rows_get_the_logits_they_get_without_it_and_keep_them() -> None:
    bundle = tiny_bundle(1)
    stage, [session] = bundle.manifest.stages[0], open_sessions(bundle.models, Place("cpu"))
    images = random_inputs(6)
    wanted = session.run([stage.output.name], {stage.input.name: images})[0]
    shape = (4, wanted.shape[1])
    buffers = Buffers(session, (stage.input.name, (4, *images.shape[1:])), (stage.output.name, shape), "cpu")
    first, second = buffers.run(images[:4]), buffers.run(images[4:])
    assert np.array_equal(np.concatenate([first, second]), wanted)


class Elsewhere:
    """In the place of a value that lies on a GPU: it has to be told when the host's memory changes."""

    def __init__(self, value: object, told: list[float]) -> None:
        self._value, self._told = value, told

    def update_inplace(self, data: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        self._told.append(float(data[0, 0, 0, 0]))


def test_memory_elsewhere_is_told_what_to_hold_before_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(1)
    stage, [session] = bundle.manifest.stages[0], open_sessions(bundle.models, Place("cpu"))
    images, told = random_inputs(2), list[float]()
    shape = (1, len(bundle.manifest.labels))
    buffers = Buffers(session, (stage.input.name, (1, *images.shape[1:])), (stage.output.name, shape), "cpu", graph=1)
    monkeypatch.setattr(buffers, "_shares_memory", False)
    monkeypatch.setattr(buffers, "_input", Elsewhere(buffers._input, told))
    for row in (0, 1):
        buffers.run(images[row : row + 1])
    assert told == images[:, 0, 0, 0].tolist()


def test_a_runtime_pads_each_batch_to_the_next_size_and_keeps_memory_for_each() -> None:
    runtime = OnnxRuntime(tiny_bundle())
    images = random_inputs(8)
    alone = runtime.run(0, images)
    runtime._padded_sizes, runtime._together = batch_sizes(8), 8
    runtime.warm_up()
    for count in (1, 3, 5, 8, 3):
        assert np.abs(runtime.run(0, images[:count]) - alone[:count]).max() < 1e-5
    assert {size for _, size in runtime._buffers} == {1, 2, 4, 8}
