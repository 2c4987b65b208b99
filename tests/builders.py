"""Shared makers for the tests: tiny bundles with real ONNX bytes, a runtime with known logits, a clock set by hand.

The ONNX files are written with a few lines of protobuf, so that the serving tests run where neither torch nor the
`onnx` package is installed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.bundle import Bundle, sha256, write
from cascade.combine import EnergyDefinition
from cascade.exits import Floats
from cascade.files import GoldenFile, Input, Stage, Tensor
from cascade.golden import Golden, pack
from cascade.manifest import Manifest, Preprocess, Provenance
from cascade.pixels import Pixels, scale_and_shift
from cascade.replay import replay
from cascade.rules import Estimate, ExitRule, Profile, ThresholdRule
from server.costs import Costs
from server.runtime import Images, OnnxRuntime

FLOAT, UINT8 = 1, 2  # of TensorProto
INT, INTS = 2, 7  # of AttributeProto


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Protobuf: a number is written as a varint, text and bytes with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Sequence[int] | int) -> bytes:
    given = [_attribute(name, value) for name, value in attributes.items()]
    return _message(*((1, name) for name in inputs), (2, output), (4, kind), *((5, item) for item in given))


def _attribute(name: str, value: Sequence[int] | int) -> bytes:
    if isinstance(value, int):
        return _message((1, name), (3, value), (20, INT))
    return _message((1, name), *((8, item) for item in value), (20, INTS))


def _weight(name: str, array: NDArray[Any]) -> bytes:
    return _message(*((1, side) for side in array.shape), (2, FLOAT), (8, name), (9, array.astype("<f4").tobytes()))


def _weight_outside(name: str, array: NDArray[Any]) -> bytes:
    place = _message((1, "location"), (2, f"{name}.bin"))
    return _message(*((1, side) for side in array.shape), (2, FLOAT), (8, name), (13, place), (14, 1))


def _value(name: str, *shape: int | str, kind: int = FLOAT) -> bytes:
    sides = [_message((1, side) if isinstance(side, int) else (2, side)) for side in shape]
    tensor = _message((1, kind), (2, _message(*((1, side) for side in sides))))
    return _message((1, name), (2, _message((1, tensor))))


ANY_SHIFT = ("rows", 3, "height", "width")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def onnx_model(
    seed: int = 0,
    size: int = 8,
    classes: int = 4,
    width: int = 6,
    batch: int | str = "N",
    outside: str = "",
    shift: Sequence[int | str] | None = None,
) -> bytes:
    """An ONNX file: 3x3 convolution, ReLU, linear; input `image` (N, 3, size, size), output `logits` (N, K).

    The weight that `outside` names, if any, lies in a file beside the model, NAME.bin. With the declared shape of a
    `shift`, the input is `pixels` in uint8, which the graph normalises by `tiny_manifest`'s rule.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {
        "w": random.normal(size=(width, 3, 3, 3)) * 0.5,
        "b": random.normal(size=width) * 0.1,
        "v": random.normal(size=(width * size**2, classes)) * 0.6 / size,
        "c": random.normal(size=classes) * 0.1,
    }
    nodes = [
        _node("Conv", ["image", "w", "b"], "x", pads=(1, 1, 1, 1)),
        _node("Relu", ["x"], "y"),
        _node("Flatten", ["y"], "flat"),
        _node("Gemm", ["flat", "v", "c"], "logits"),
    ]
    inputs = [_value("image", batch, 3, size, size)]
    if shift is not None:
        weights["scale"], weights["shift"] = scale_and_shift(Preprocess(size=size, mean=MEAN, std=STD))
        nodes = [
            _node("Cast", ["pixels"], "floats", to=FLOAT),
            _node("Mul", ["floats", "scale"], "scaled"),
            _node("Add", ["scaled", "shift"], "image"),
            *nodes,
        ]
        inputs = [_value("pixels", batch, 3, size, size, kind=UINT8), _value("shift", *shift)]
    graph = _message(
        *((1, node) for node in nodes),
        (2, "tiny"),
        *((5, (_weight_outside if name == outside else _weight)(name, array)) for name, array in weights.items()),
        *((11, each) for each in inputs),
        (12, _value("logits", batch, classes)),
    )
    return _message((1, 8), (7, graph), (8, _message((1, ""), (2, 17))))


def tiny_manifest(
    models: Sequence[bytes],
    size: int = 8,
    threshold: float = 0.6,
    definition: EnergyDefinition = "summed",
    classes: int = 4,
    name: str = "tiny",
    version: str = "1",
    profiles: Mapping[str, tuple[float, ...]] | None = None,
    macs: Sequence[int] | None = None,
    dtype: Literal["float32", "uint8"] = "float32",
) -> Manifest:
    """A manifest for these model files, named `stage0.onnx`, `stage1.onnx`, ...; costs are round unless given."""
    shape = (None, 3, size, size)
    takes = {
        "float32": Input(name="image", shape=shape),
        "uint8": Input(name="pixels", shape=shape, dtype="uint8", shift="shift"),
    }
    stages = [
        Stage(
            role="residual" if number else "student",
            network="tiny",
            file=f"stage{number}.onnx",
            sha256=sha256(model),
            params=200,
            macs=10_000 * (number + 1) if macs is None else macs[number],
            input=takes[dtype],
            output=Tensor(name="logits", shape=(None, classes)),
        )
        for number, model in enumerate(models)
    ]
    return Manifest(
        name=name,
        version=version,
        stages=tuple(stages),
        preprocess=Preprocess(size=size, mean=MEAN, std=STD),
        labels=tuple(f"class {index}" for index in range(classes)),
        exit=ExitRule(threshold=threshold, definition=definition, rule=ThresholdRule(name="fixed")),
        provenance=Provenance(dataset="none", recipe="none", created="2026-01-01T00:00:00Z", opset=17, versions={}),
        profiles=tuple(profile(name, limits, len(stages)) for name, limits in (profiles or {}).items()),
    )


def profile(name: str, thresholds: tuple[float, ...], stages: int) -> Profile:
    """Thresholds under a name; nobody measured them."""
    guess = Estimate(value=0.5, low=0, high=1)
    return Profile(
        name=name,
        rule="paper",
        thresholds=thresholds,
        certified=False,
        method="made up",
        data="none",
        samples=1,
        seen="unknown",
        agreement=guess,
        macs=guess,
        exits=(guess,) * stages,
    )


def tiny_bundle(stages: int = 3, size: int = 8, **manifest: Any) -> Bundle:
    """A cascade of random networks over which the exits spread."""
    classes = manifest.get("classes", 4)
    shift = ANY_SHIFT if manifest.get("dtype") == "uint8" else None
    models = tuple(onnx_model(seed, size, classes, shift=shift) for seed in range(stages))
    return Bundle(tiny_manifest(models, size, macs=[tiny_macs(size, classes)] * stages, **manifest), models)


def tiny_macs(size: int = 8, classes: int = 4, width: int = 6) -> int:
    """Multiply-accumulates of `onnx_model`: 27 for each element of the maps, and one a weight of the linear layer."""
    return (27 + classes) * width * size**2


def write_tiny_bundle(folder: Path, **kwargs: Any) -> Bundle:
    """The same, on disk."""
    bundle = tiny_bundle(**kwargs)
    write(folder, bundle.manifest, bundle.files())
    return bundle


def with_golden(bundle: Bundle, logits: Sequence[Floats], pixels: Pixels, tolerance: float = 1e-3) -> Bundle:
    """A bundle with golden samples: `pixels` (N, 3, S, S), and (N, K) logits a stage, as its stages give them."""
    exit_rule = bundle.manifest.exit
    exits = replay(logits, exit_rule.threshold, exit_rule.definition).stages
    data = pack(Golden(pixels.transpose(0, 2, 3, 1), np.stack(logits), exits))
    declared = GoldenFile(
        file="golden.npz", sha256=sha256(data), samples=len(pixels), tolerance=(tolerance,) * len(bundle.models)
    )
    return Bundle(bundle.manifest.model_copy(update={"golden": declared}), bundle.models, data)


def golden_bundle(count: int = 40, **kwargs: Any) -> Bundle:
    """A tiny bundle with golden samples that leave at every stage."""
    bundle = tiny_bundle(**kwargs)
    side = bundle.manifest.preprocess.size
    pixels = random_pixels(count, side, seed=5)
    runtime = OnnxRuntime(bundle)
    logits = [runtime.run(stage, pixels) for stage in range(len(bundle.models))]
    return with_golden(bundle, logits, pixels)


def write_golden_bundle(folder: Path, **kwargs: Any) -> Bundle:
    """The same, on disk."""
    bundle = golden_bundle(**kwargs)
    write(folder, bundle.manifest, bundle.files())
    return bundle


def random_inputs(count: int, size: int = 8, seed: int = 0) -> Floats:
    """(count, 3, size, size) float32 as preprocessing might give."""
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)


def random_pixels(count: int, size: int = 8, seed: int = 0) -> Pixels:
    """(count, 3, size, size) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)


def random_photo(seed: int = 0, width: int = 23, height: int = 17) -> Image.Image:
    """An RGB image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class FakeRuntime:
    """Looks logits up instead of computing them: the value of an image's first pixel is its row in the table.

    Args:
        logits: (stages, N, K), each stage's own.
        before: called with the stage before each run, in the thread; may wait, or raise.
        warm: called as the warm-up; the same.
        threshold: of the manifest.
        definition: of the manifest.
        name, version: of the manifest.
        costs: what the warm-up finds; default that nothing takes time, or, with `before`, more than a loop can spare.

    Attributes:
        batches: (stage, rows) of each run, in order.
    """

    def __init__(
        self,
        logits: NDArray[Any],
        before: Callable[[int], object] | None = None,
        warm: Callable[[], object] = lambda: None,
        threshold: float = 0.6,
        definition: EnergyDefinition = "summed",
        costs: Costs | None = None,
        name: str = "tiny",
        version: str = "1",
    ) -> None:
        stages, _, classes = logits.shape
        self.logits = logits.astype(np.float32)
        self.batches: list[tuple[int, list[int]]] = []
        self._before, self._warm = before, warm
        self.costs = costs or Costs((1,), ((0.0021 if before else 0.0,),) * stages)
        names = [str(stage).encode() for stage in range(stages)]
        self.manifest = tiny_manifest(
            names, threshold=threshold, definition=definition, classes=classes, name=name, version=version
        )

    def warm_up(self) -> Costs:
        """Do what the test wants done."""
        self._warm()
        return self.costs

    def run(self, stage: int, images: Images) -> Floats:
        """Look the rows up."""
        if self._before is not None:
            self._before(stage)
        rows = [int(image[0, 0, 0]) for image in images]
        self.batches.append((stage, rows))
        return self.logits[stage, rows]

    @staticmethod
    def images(rows: Sequence[int], size: int = 8) -> Floats:
        """Inputs that stand for these rows of the table."""
        result = np.zeros((len(rows), 3, size, size), np.float32)
        result[:, 0, 0, 0] = rows
        return result


class FakeClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
