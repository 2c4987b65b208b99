"""The seam to onnxruntime: sessions over verified bytes, warm-up, and `run(stage, images)`.

An image's answer must not depend on its company. On a CPU a larger batch takes as long an image, but for what every run
costs beside its arithmetic; so a few images that wait together are run together where the warm-up has seen that each of
them gets the very logits it gets alone, to the last bit, and alone where it has not. On a GPU a batch is padded to one
of a few sizes that were all tried and timed at warm-up, because the first run of a new shape can stall, and because the
times say which batches are worth waiting for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.feeds import feeds
from cascade.files import Precision
from cascade.golden import FIELD, Golden, check, unpack
from cascade.manifest import Manifest
from cascade.pixels import Pixels, normalise
from server.buffers import Buffers
from server.costs import Costs
from server.pinned import page_locked
from server.providers import Place, open_sessions

Image = Floats | Pixels
Images = Sequence[Image] | Floats | Pixels

# Most images in one run on a CPU: beyond, maps leave the cache and a run takes longer an image. Bytes are smaller.
TOGETHER: dict[Precision, int] = {"fp32": 8, "fp16": 8, "int8": 16}
LIGHT_S = 0.002  # a run that takes longer gains nothing from company, and is not worth the trials
TRIALS = 3  # timed runs of each stage at each batch size; the fastest counts
TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}
ANY_SHIFT = (None, 3, None, None)


class Runtime(Protocol):
    """What the engine asks of whatever runs the networks."""

    manifest: Manifest

    def warm_up(self) -> Costs:
        """Run every stage at every batch size that will be used, and say how long each takes."""
        ...

    def run(self, stage: int, images: Images) -> Floats:
        """Give the stage's own logits.

        Args:
            stage: 0 for the first student.
            images: B of (3, H, W): float32, preprocessed, or uint8 of the network's size; a list or an array of them.

        Returns:
            (B, K) float32.
        """
        ...


class OnnxRuntime:
    """A cascade on onnxruntime.

    Args:
        bundle: verified; the sessions are made from its bytes.
        place: where the networks run; or the device alone, `cpu`, `cuda:N` or `tensorrt:N`.
        max_batch: largest batch that will be asked for.
        self_test: whether the warm-up ends with the bundle's golden samples.

    Raises:
        BundleError: a graph cannot be loaded or does not fit the manifest, or there are no golden samples to test with.
        DeviceUnavailable: the device is not there.
    """

    def __init__(
        self, bundle: Bundle, place: Place | str = "cpu", max_batch: int = 32, *, self_test: bool = False
    ) -> None:
        place = Place.of(place) if isinstance(place, str) else place
        self.manifest = bundle.manifest
        self._place = place
        self._padded_sizes = batch_sizes(max_batch) if place.is_gpu else ()
        self._together = max_batch if self._padded_sizes else 1
        self._sessions = open_sessions(bundle.models, place)
        for number, session in enumerate(self._sessions):
            _check_graph(number, session, bundle.manifest)
        self._outputs = [[stage.output.name] for stage in self.manifest.stages]
        self._buffers: dict[tuple[int, int], Buffers] = {}
        self._golden = _golden_of(bundle) if self_test else None

    def warm_up(self) -> Costs:
        """Run every stage at every batch size that will be used, and say how long each takes; then the golden samples.

        Raises:
            BundleError: the networks do not say of the golden samples what they must.
        """
        side = self.manifest.preprocess.size
        stages = range(len(self._sessions))
        sizes = self._padded_sizes or (1,)
        seconds = tuple(tuple(self._timed(stage, size) for size in sizes) for stage in stages)
        if not self._padded_sizes and max(row[0] for row in seconds) <= LIGHT_S:
            most = min(TOGETHER[stage.precision] for stage in self.manifest.stages)
            pixels = np.random.default_rng(0).integers(0, 256, (most, 3, side, side), np.uint8)
            self._together = most if all(self._is_one_by_one(stage, pixels) for stage in stages) else 1
        if self._golden is not None:
            self._test(self._golden.pixels(), self._golden)
        return Costs(sizes, seconds)

    def _test(self, pixels: Pixels, golden: Golden) -> None:
        """Run the golden samples as requests are run: one at a time, in company, and normalised before they came."""
        floats = normalise(pixels, self.manifest.preprocess)
        ways: list[tuple[Floats | Pixels, int]] = [(pixels, 1), (pixels, len(pixels)), (floats, len(pixels))]
        for images, batch in ways:
            parts = [images[start : start + batch] for start in range(0, len(images), batch)]
            found = [np.concatenate([self.run(stage, part) for part in parts]) for stage in range(len(self._sessions))]
            check(golden, found, self.manifest)

    def _is_one_by_one(self, stage: int, pixels: Pixels) -> bool:
        """Whether images get the very logits together that they get alone, however many, and of whatever kind, are."""
        alone = np.concatenate([self._run_batch(stage, pixels[row : row + 1]) for row in range(len(pixels))])
        rows = normalise(pixels, self.manifest.preprocess)
        kinds: list[Images] = [rows] if self.manifest.stages[stage].input.dtype == "float32" else [pixels, rows]
        batches = [images[:size] for images in kinds for size in range(2, len(pixels) + 1)]
        return all(np.array_equal(self._run_batch(stage, batch), alone[: len(batch)]) for batch in batches)

    def _timed(self, stage: int, size: int) -> float:
        """Seconds of the fastest of a few runs on what the graph takes; the first, which sets things up, counts not."""
        side, takes = self.manifest.preprocess.size, self.manifest.stages[stage].input.dtype
        images = [np.zeros((3, side, side), takes)] * size
        self.run(stage, images)
        times = []
        for _ in range(TRIALS):
            began = time.perf_counter()
            self.run(stage, images)
            times.append(time.perf_counter() - began)
        return min(times)

    def run(self, stage: int, images: Images) -> Floats:
        """Give the stage's own logits, (B, K) float32, for B images."""
        largest = self._together
        if len(images) <= largest:
            return self._run_batch(stage, images)
        parts = [images[start : start + largest] for start in range(0, len(images), largest)]
        return np.concatenate([self._run_batch(stage, part) for part in parts])

    def _run_batch(self, stage: int, images: Images) -> Floats:
        takes, rule = self.manifest.stages[stage].input, self.manifest.preprocess
        given = feeds(self._rows(images), takes, rule)
        if self._padded_sizes:
            return self._buffers_for(stage, len(images)).run(given)
        logits: Floats = self._sessions[stage].run(self._outputs[stage], given)[0]
        return logits

    def _buffers_for(self, stage: int, count: int) -> Buffers:
        """Memory for a batch of so many images, or for the next larger one that is warmed."""
        size = next(size for size in self._padded_sizes if size >= count)
        if (found := self._buffers.get((stage, size))) is None:
            takes, [output] = self.manifest.stages[stage].input, self._outputs[stage]
            side, classes = self.manifest.preprocess.size, len(self.manifest.labels)
            number = self._place.number
            found = self._buffers[stage, size] = Buffers(
                self._sessions[stage],
                (takes.name, (size, 3, side, side)),
                (output, (size, classes)),
                "cuda" if self._place.is_gpu else "cpu",
                number,
                graph=size if self._place.cuda_graphs else None,
                dtype=takes.dtype,
                memory=partial(page_locked, number=number) if self._place.is_gpu else np.zeros,
            )
        return found

    def _rows(self, images: Images) -> Floats | Pixels:
        """Images as one array: pixels if all are, of which four fit where one float does, otherwise normalised."""
        if len({image.dtype for image in images}) == 1:
            rows: Floats | Pixels = _stacked(images)
            return rows
        parts: list[Any] = [image[np.newaxis] for image in images]
        rule = self.manifest.preprocess
        return np.concatenate([normalise(part, rule) if part.dtype == np.uint8 else part for part in parts])


def _golden_of(bundle: Bundle) -> Golden:
    if bundle.golden is None:
        raise BundleError(FIELD, "there are no golden samples to test with: `rescade golden` adds them to a bundle")
    return unpack(bundle.golden, bundle.manifest)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """The powers of two below `max_batch`, and itself."""
    return (*(2**power for power in range((max_batch - 1).bit_length())), max_batch)


def _check_graph(number: int, session: Any, manifest: Manifest) -> None:
    takes, gives = manifest.stages[number].input, manifest.stages[number].output
    shifts = [] if takes.shift is None else [(takes.shift, "float32", ANY_SHIFT)]
    overridable = [each for each in session.get_overridable_initializers() if each.name == takes.shift]
    for kind, wanted, found in (
        ("input", [(takes.name, takes.dtype, takes.shape)], session.get_inputs()),
        ("input.shift", shifts, overridable),
        ("output", [(gives.name, gives.dtype, gives.shape)], session.get_outputs()),
    ):
        if len(found) != len(wanted) or not all(map(_fits, wanted, found)):
            graph = ", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in found) or "none"
            said = ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in wanted)
            raise BundleError(f"stages[{number}].{kind}", f"the manifest says {said}, the graph has {graph}")


def _fits(wanted: tuple[str, str, tuple[int | None, ...]], found: Any) -> bool:
    name, dtype, shape = wanted
    same_type = found.name == name and found.type == TYPES[dtype] and len(found.shape) == len(shape)
    return same_type and all(
        isinstance(there, str | None) if here is None else there == here or not isinstance(there, int)
        for here, there in zip(shape, found.shape, strict=True)
    )


def _stacked(images: Images) -> Any:
    """One array of the images, and no copy where there is no need of one."""
    if isinstance(images, np.ndarray):
        return images
    if len(images) == 1:
        return images[0][np.newaxis]
    return np.concatenate(images).reshape(len(images), *images[0].shape)  # as np.stack does, in half the time
