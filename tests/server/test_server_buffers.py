"""Fixed memory for a network: the same answers, however few of its rows are used, and however often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from cascade.bundle import Bundle
from cascade.exits import Floats
from cascade.feeds import feeds
from cascade.pixels import Pixels
from server.buffers import Buffers
from server.providers import Place, open_sessions
from server.runtime import OnnxRuntime, batch_sizes
from tests.builders import random_inputs, random_pixels, tiny_bundle


def buffers_of(bundle: Bundle, size: int, **options: Any) -> Buffers:
    stage, [session] = bundle.manifest.stages[0], open_sessions(bundle.models, Place("cpu"))
    side = bundle.manifest.preprocess.size
    output = (stage.output.name, (size, len(bundle.manifest.labels)))
    return Buffers(
        session, (stage.input.name, (size, 3, side, side)), output, "cpu", dtype=stage.input.dtype, **options
    )


def logits_of(bundle: Bundle, images: Floats | Pixels) -> Floats:
    return OnnxRuntime(bundle).run(0, images)


def test_rows_get_the_logits_they_get_without_it_and_keep_them() -> None:
    bundle, images = tiny_bundle(1), random_inputs(6)
    buffers = buffers_of(bundle, 4)
    found = [buffers.run({"image": images[:4]}), buffers.run({"image": images[4:]})]
    assert np.array_equal(np.concatenate(found), logits_of(bundle, images))


def test_pixels_get_the_logits_they_get_without_it_and_keep_them() -> None:
    bundle, pixels = tiny_bundle(1, dtype="uint8"), random_pixels(6)
    buffers = buffers_of(bundle, 4)
    found = [buffers.run({"pixels": pixels[:4]}), buffers.run({"pixels": pixels[4:]})]
    assert np.array_equal(np.concatenate(found), logits_of(bundle, pixels))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_floats_for_a_graph_of_pixels_leave_what_is_bound_alone(count: int) -> None:
    bundle, images, pixels = tiny_bundle(1, dtype="uint8"), random_inputs(4), random_pixels(4)
    buffers = buffers_of(bundle, 4, graph=1)
    before = buffers.run({"pixels": pixels})
    found = buffers.run(feeds(images[:count], bundle.manifest.stages[0].input))
    assert np.array_equal(found, logits_of(bundle, images[:count]))
    assert np.array_equal(buffers.run({"pixels": pixels}), before)


class Elsewhere:
    """In the place of a value that lies on a GPU: it has to be told when the host's memory changes."""

    def __init__(self, value: object, told: list[float]) -> None:
        self._value, self._told = value, told

    def update_inplace(self, data: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        self._told.append(float(data[0, 0, 0, 0]))


def test_memory_elsewhere_is_told_what_to_hold_before_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    images, told = random_inputs(2), list[float]()
    buffers = buffers_of(tiny_bundle(1), 1, graph=1)
    monkeypatch.setattr(buffers, "_shares_memory", False)
    monkeypatch.setattr(buffers, "_input", Elsewhere(buffers._input, told))
    for row in (0, 1):
        buffers.run({"image": images[row : row + 1]})
    assert told == images[:, 0, 0, 0].tolist()


def test_the_hosts_memory_is_made_as_it_is_asked_to_be() -> None:
    made = []

    def memory(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        made.append((shape, dtype))
        return np.zeros(shape, dtype)

    buffers_of(tiny_bundle(1, dtype="uint8"), 4, memory=memory)
    assert made == [((4, 3, 8, 8), "uint8")]


def test_a_runtime_pads_each_batch_to_the_next_size_and_keeps_memory_for_each() -> None:
    runtime = OnnxRuntime(tiny_bundle())
    images = random_inputs(8)
    alone = runtime.run(0, images)
    runtime._padded_sizes, runtime._together = batch_sizes(8), 8
    runtime.warm_up()
    for count in (1, 3, 5, 8, 3):
        assert np.abs(runtime.run(0, images[:count]) - alone[:count]).max() < 1e-5
    assert {size for _, size in runtime._buffers} == {1, 2, 4, 8}


@pytest.mark.parametrize("images", [random_pixels(8), random_inputs(8)], ids=["pixels", "floats"])
def test_a_runtime_of_pixels_pads_both_kinds_and_binds_pixels(images: Floats | Pixels) -> None:
    runtime = OnnxRuntime(tiny_bundle(dtype="uint8"))
    alone = runtime.run(0, images)
    runtime._padded_sizes, runtime._together = batch_sizes(8), 8
    runtime.warm_up()
    for count in (1, 3, 8, 3):
        assert np.abs(runtime.run(0, images[:count]) - alone[:count]).max() < 1e-5
    assert {buffers._host.dtype.name for buffers in runtime._buffers.values()} == {"uint8"}
