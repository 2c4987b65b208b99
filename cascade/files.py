"""The files of a bundle beside its manifest: the graph of each stage, the one that joins them, and golden samples."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cascade.fields import Count, Frozen, Inside, Sha256

Precision = Literal["fp32", "fp16", "int8"]
ImageType = Literal["float32", "uint8"]
Shape = Annotated[tuple[Annotated[int, Field(gt=0)] | None, ...], Field(min_length=1)]


class Tensor(Frozen):
    """An output of a stage's graph; `None` in the shape is the batch dimension.

    Attributes:
        name: its name in the graph.
        shape: e.g. (None, 10).
        dtype: element type.
    """

    name: Annotated[str, Field(min_length=1)]
    shape: Shape
    dtype: Literal["float32"] = "float32"


class Input(Frozen):
    """The input of a stage's graph; `None` in the shape is the batch dimension.

    Attributes:
        name: its name in the graph.
        shape: e.g. (None, 3, 32, 32).
        dtype: `float32`, pixels as `preprocess` normalises them, or `uint8`, pixels.
        shift: of a `uint8` graph that normalises them by `pixels * scale + shift`, the name of that `shift`: an
            initialiser that is an input too, (N or 1, 3, H or 1, W or 1) float32. Whoever has normalised images gives
            zeros as pixels and the images as `shift`. A `uint8` graph without one was quantised on the grid of the
            pixels, and whoever has normalised images rounds them to it.
    """

    name: Annotated[str, Field(min_length=1)]
    shape: Shape
    dtype: ImageType = "float32"
    shift: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _shift_fits(self) -> Self:
        if self.shift is not None and (self.dtype != "uint8" or self.shift == self.name):
            raise ValueError("only a graph that takes uint8 can have a 'shift', with a name of its own")
        return self


class Stage(Frozen):
    """One network of the cascade.

    Attributes:
        role: `student` for stage 0, `residual` for every later one.
        network: name of the architecture.
        file: POSIX path of the ONNX file, relative to the bundle, inside it.
        sha256: digest of the file, 64 hex digits.
        params: of the network as it was trained, batch norms' weights and biases included; Dirac weights are folded.
        graph_params: of the file's own graph. Of two that batch norm had for each channel, float32 graphs keep one, the
            bias of the convolution that it was folded into; int8 ones have more where shortcuts became convolutions.
            None in bundles from before it was counted.
        macs: multiply-accumulates of convolutions and matrix products for one image.
        input: images, (None, C, H, W).
        output: logits, (None, K).
        precision: of the arithmetic inside; input and output are what they say in any case.
    """

    role: Literal["student", "residual"]
    network: str
    file: Inside
    sha256: Sha256
    params: Count
    graph_params: Count | None = None
    macs: Count
    input: Input
    output: Tensor
    precision: Precision = "fp32"


class Value(Frozen):
    """One input or output of the fused graph; `None` in the shape is an open dimension.

    Attributes:
        name: its name in the graph.
        shape: e.g. (None, 10).
        dtype: element type.
    """

    name: Annotated[str, Field(min_length=1)]
    shape: tuple[Annotated[int, Field(gt=0)] | None, ...]
    dtype: Literal["float32", "float64", "int32", "int64", "uint8"]


class Fused(Frozen):
    """The whole cascade as one ONNX file, beside the stages it was made of.

    Attributes:
        file: POSIX path of the file, relative to the bundle, inside it.
        sha256: digest of the file, 64 hex digits.
        inputs: images and threshold.
        outputs: logits, label, exit stage and energy of each sample.
        pixels: whether preprocessing is in the graph, so that images are uint8, (N, H, W, 3) of any size.
    """

    file: Inside
    sha256: Sha256
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    pixels: bool = False


class Quantiser(Frozen):
    """How the int8 stages of a bundle were made: unsigned activations with fixed ranges, signed weights a channel.

    Attributes:
        method: how the range of an activation follows from the calibration images: their extremes, the range of least
            divergence (entropy), or one that leaves out the outermost.
        percentile: share in percent inside the range, for `percentile`.
        images: training images, none of them in D_v, that the ranges were taken from.
        weight_bits: 8, or 7, whose sums of products cannot saturate on a CPU without VNNI.
        in_float: what was left in float32 inside the int8 stages: the layers that read the images, what comes after the
            last map, the additions of shortcuts.
    """

    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, Field(gt=50, lt=100)] | None = None
    images: Annotated[int, Field(gt=0)] = 500
    weight_bits: Literal[7, 8] = 7
    in_float: tuple[Literal["stem", "classifier", "additions"], ...] = ("classifier",)

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if (self.method == "percentile") != (self.percentile is not None):
            raise ValueError("percentile is for method 'percentile', and needed there")
        return self


class GoldenFile(Frozen):
    """A few images of D_v with the logits that every stage must give for them; `cascade.golden` has the format.

    Attributes:
        file: POSIX path, relative to the bundle, inside it.
        sha256: digest of the file.
        samples: how many images.
        tolerance: a stage's largest difference of a logit that another machine or device may bring.
    """

    file: Inside
    sha256: Sha256
    samples: Annotated[int, Field(gt=0, le=1024)]
    tolerance: tuple[Annotated[float, Field(gt=0)], ...]
