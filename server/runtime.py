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
from typing import Any, Protocol

import numpy as np

from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.exits import Floats
from cascade.golden import FIELD, Golden, check, unpack
from cascade.manifest import Manifest, Tensor
from cascade.pixels import Pixels, normalise
from server.buffers import Buffers
from server.costs import Costs
from server.providers import Place, open_sessions

Image = Floats | Pixels
Images = Sequence[Image] | Floats | Pixels

TOGETHER = 8  # most images in one run on a CPU: beyond, maps leave the cache and a run takes longer an image again
LIGHT_S = 0.002  # a run that takes longer gains nothing from company, and is not worth the trials
TRIALS = 3  # timed runs of each stage at each batch size; the fastest counts


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
        self._names = [([stage.output.name], stage.input.name) for stage in self.manifest.stages]
        self._buffers: dict[tuple[int, int], Buffers] = {}
        self._golden = _golden_of(bundle) if self_test else None

    def warm_up(self) -> Costs:
        """Run every stage at every batch size that will be used, and say how long each takes; then the golden samples.

        Raises:
            BundleError: the networks do not say of the golden samples what they must.
        """
        side = self.manifest.preprocess.size
        image = np.zeros((3, side, side), np.float32)
        stages = range(len(self._sessions))
        sizes = self._padded_sizes or (1,)
        seconds = tuple(tuple(self._timed(stage, [image] * size) for size in sizes) for stage in stages)
        if not self._padded_sizes and max(row[0] for row in seconds) <= LIGHT_S:
            images = np.random.default_rng(0).normal(size=(TOGETHER, 3, side, side)).astype(np.float32)
            self._together = TOGETHER if all(self._is_one_by_one(stage, images) for stage in stages) else 1
        if self._golden is not None:
            self._test(self._golden.pixels(), self._golden)
        return Costs(sizes, seconds)

    def _test(self, pixels: Pixels, golden: Golden) -> None:
        """Run the golden samples as requests are run: one at a time, and in company."""
        for batch in (1, len(pixels)):
            parts = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
            found = [np.concatenate([self.run(stage, part) for part in parts]) for stage in range(len(self._sessions))]
            check(golden, found, self.manifest)

    def _is_one_by_one(self, stage: int, images: Floats) -> bool:
        """Whether images get the very logits together that they get alone, however many are together."""
        alone = np.concatenate([self._run_batch(stage, images[row : row + 1]) for row in range(len(images))])
        sizes = range(2, len(images) + 1)
        return all(np.array_equal(self._run_batch(stage, images[:size]), alone[:size]) for size in sizes)

    def _timed(self, stage: int, images: Images) -> float:
        """Seconds of the fastest of a few runs; the first, which sets things up, does not count."""
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
        rows = self._rows(images)
        if self._padded_sizes:
            return self._buffers_for(stage, len(rows)).run(rows)
        output, input_ = self._names[stage]
        logits: Floats = self._sessions[stage].run(output, {input_: rows})[0]
        return logits

    def _buffers_for(self, stage: int, count: int) -> Buffers:
        """Memory for a batch of so many images, or for the next larger one that is warmed."""
        size = next(size for size in self._padded_sizes if size >= count)
        if (found := self._buffers.get((stage, size))) is None:
            (output,), input_ = self._names[stage]
            side, classes = self.manifest.preprocess.size, len(self.manifest.labels)
            graph = size if self._place.cuda_graphs else None
            found = self._buffers[stage, size] = Buffers(
                self._sessions[stage],
                (input_, (size, 3, side, side)),
                (output, (size, classes)),
                "cuda" if self._place.is_gpu else "cpu",
                self._place.number,
                graph,
            )
        return found

    def _rows(self, images: Images) -> Floats:
        """Images as one array; pixels, of which four fit where one float does, are normalised here and not before."""
        rule = self.manifest.preprocess
        if len({image.dtype for image in images}) == 1:
            rows: Any = _stacked(images)
            return normalise(rows, rule) if rows.dtype == np.uint8 else rows
        parts: list[Any] = [image[np.newaxis] for image in images]
        return np.concatenate([normalise(part, rule) if part.dtype == np.uint8 else part for part in parts])


def _golden_of(bundle: Bundle) -> Golden:
    if bundle.golden is None:
        raise BundleError(FIELD, "there are no golden samples to test with: `rescade golden` adds them to a bundle")
    return unpack(bundle.golden, bundle.manifest)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """The powers of two below `max_batch`, and itself."""
    return (*(2**power for power in range((max_batch - 1).bit_length())), max_batch)


def _check_graph(number: int, session: Any, manifest: Manifest) -> None:
    stage = manifest.stages[number]
    for kind, wanted, found in (
        ("input", stage.input, session.get_inputs()),
        ("output", stage.output, session.get_outputs()),
    ):
        if len(found) != 1 or not _fits(wanted, found[0]):
            graph = ", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in found)
            raise BundleError(
                f"stages[{number}].{kind}", f"the manifest says {wanted.name} {wanted.shape}, the graph has {graph}"
            )


def _fits(wanted: Tensor, found: Any) -> bool:
    same_type = found.name == wanted.name and found.type == "tensor(float)" and len(found.shape) == len(wanted.shape)
    return same_type and all(
        isinstance(there, str | None) if here is None else there == here or not isinstance(there, int)
        for here, there in zip(wanted.shape, found.shape, strict=True)
    )


def _stacked(images: Images) -> Any:
    """One array of the images, and no copy where there is no need of one."""
    if isinstance(images, np.ndarray):
        return images
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)
