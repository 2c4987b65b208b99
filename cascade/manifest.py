"""The bundle's manifest: frozen models that know the format and touch nothing.

A manifest describes the stages in the order they run, how an image becomes their input, the class labels, when a sample
may leave, the figures measured at export, and where it all came from. `FORMAT_VERSION` grows when a reader of the old
format would misread the new one; unknown versions are refused by `cascade.bundle`.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cascade.exits import Threshold

FORMAT_VERSION: Literal[2] = 2
READABLE = (1, 2)  # version 1 had no digest, golden samples, profiles, precisions and fused file, and means the same

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Precision = Literal["fp32", "fp16", "int8"]
ImageType = Literal["float32", "uint8"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _stays_inside(value: str) -> str:
    path = PurePosixPath(value)
    plain = value == str(path) and "\\" not in value and ":" not in value and "\0" not in value
    if not plain or path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{value!r} must be a relative POSIX path inside the bundle, like 'stage0.onnx'")
    return value


Inside = Annotated[str, AfterValidator(_stays_inside)]


class Frozen(BaseModel):
    """Immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        dtype: `float32`, pixels as `preprocess` normalises them, or `uint8`, pixels, which the graph then normalises by
            `pixels * scale + shift`.
        shift: of a `uint8` graph, the name of that `shift`: an initialiser that is an input too, (N or 1, 3, H or 1,
            W or 1) float32. Whoever has normalised images gives zeros as pixels and the images as `shift`.
    """

    name: Annotated[str, Field(min_length=1)]
    shape: Shape
    dtype: ImageType = "float32"
    shift: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _shift_fits(self) -> Self:
        if (self.dtype == "uint8") != (self.shift is not None) or self.shift == self.name:
            raise ValueError(
                "a graph that takes uint8 has a 'shift' with a name of its own, and no other graph has one"
            )
        return self


class Stage(Frozen):
    """One network of the cascade.

    Attributes:
        role: `student` for stage 0, `residual` for every later one.
        network: name of the architecture.
        file: POSIX path of the ONNX file, relative to the bundle, inside it.
        sha256: digest of the file, 64 hex digits.
        params: trainable parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image.
        input: images, (None, C, H, W).
        output: logits, (None, K).
        precision: of the arithmetic inside; input and output are what they say in any case.
    """

    role: Literal["student", "residual"]
    network: str
    file: Inside
    sha256: Sha256
    params: Count
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


class Preprocess(Frozen):
    """From a decoded image to a stage's input.

    Attributes:
        size: height and width of the input, pixels.
        resize: `stretch` to size x size, or `short_side` to `resize_to`.
        resize_to: length of the short side after `short_side`, pixels; at least `size`.
        crop: `none` after a stretch, `center` after a short-side resize.
        interpolation: Pillow's filter, with its antialiasing.
        channels: colour space handed to the network.
        mean: subtracted from the channel, in [0, 1] units.
        std: divided by, in [0, 1] units.
    """

    size: Annotated[int, Field(gt=0, le=4096)]
    resize: Literal["stretch", "short_side"] = "stretch"
    resize_to: Annotated[int, Field(gt=0, le=8192)] | None = None
    crop: Literal["none", "center"] = "none"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channels: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        if self.resize == "stretch" and (self.crop != "none" or self.resize_to is not None):
            raise ValueError("resize 'stretch' already gives the size: it takes no crop and no resize_to")
        if self.resize == "short_side" and (
            self.crop != "center" or self.resize_to is None or self.resize_to < self.size
        ):
            raise ValueError("resize 'short_side' needs crop 'center' and a resize_to of at least size")
        return self


class ThresholdRule(Frozen):
    """Where a threshold came from: `ratio * energy` of a reference on D_v, or a number somebody gave.

    Attributes:
        name: `energy_ratio` (ResKD section 5.3 and Algorithm 1) or `fixed`.
        ratio: rho, for `energy_ratio`.
        reference: `S_n`, the whole cascade, or `T`, the teacher.
        energy: mean energy of the reference on D_v.
        samples: size of D_v.
        fingerprint: sha256 over the sample indices of D_v and their labels.
        held_out: whether D_v was kept out of training.
    """

    name: Literal["energy_ratio", "fixed"]
    ratio: Annotated[float, Field(gt=0)] | None = None
    reference: Literal["S_n", "T"] | None = None
    energy: Annotated[float, Field(gt=0)] | None = None
    samples: Count | None = None
    fingerprint: str | None = None
    held_out: bool | None = None


class ExitRule(Frozen):
    """When a sample may leave: its score exceeds the threshold.

    Attributes:
        score: the only one there is, the squared norm of the softmax.
        definition: of the summed logits, or accumulated over stages.
        threshold: to be exceeded; equality goes on.
        rule: where the threshold came from.
    """

    score: Literal["energy"] = "energy"
    definition: Literal["summed", "accumulated"] = "summed"
    threshold: float
    rule: ThresholdRule


class NetworkFigures(Frozen):
    """One network or running sum on one split. Accuracy in [0, 1]; MACs a sample; energy is the mean."""

    name: str
    accuracy: Share
    macs: Annotated[float, Field(ge=0)]
    energy: float | None = None


class Figures(Frozen):
    """Everything measured on one split of the data.

    Attributes:
        split: what the samples are.
        samples: how many.
        teacher: the teacher alone, if it was known at export.
        sums: S_0, S_1, ..., S_n: accuracy, energy, and the MACs of all stages up to there.
        adaptive: the sample-adaptive cascade at the bundle's threshold; MACs are the mean.
        exits: share of samples that left at each stage.
    """

    split: str
    samples: Annotated[int, Field(gt=0)]
    teacher: NetworkFigures | None = None
    sums: Annotated[tuple[NetworkFigures, ...], Field(min_length=1)]
    adaptive: NetworkFigures
    exits: tuple[Share, ...]


class Estimate(Frozen):
    """A mean over samples, and the ends of its confidence interval."""

    value: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]


class Latency(Frozen):
    """What the stages took at batch 1, and on what.

    Attributes:
        stages_ms: median milliseconds of each stage.
        mean_ms: of a sample of the cascade, at the profile's thresholds.
        hardware: what it was measured on.
    """

    stages_ms: tuple[Annotated[float, Field(ge=0)], ...]
    mean_ms: Annotated[float, Field(ge=0)]
    hardware: str


class Profile(Frozen):
    """Thresholds under a name, with what they keep and how that is known.

    Attributes:
        name: by which requests ask for them.
        rule: `paper` (rho times the mean energy), `accuracy` and `agreement` (lose at most `eps`, with probability
            1 - `delta`), `cost` and `latency` (the most accurate within `budget`).
        thresholds: one for all stages, or one for each but the last.
        certified: whether the rule is kept with the probability that it names; if not, nothing is promised, and where
            nothing could be, the thresholds are those of the full cascade.
        method: how they were found, in words.
        eps: what may be lost: accuracy, or agreement with the full cascade.
        delta: probability, over the draw of the calibration samples, that more is lost.
        per_exit: whether it is kept among those that leave at each stage, or on average only.
        budget: mean MACs, or mean milliseconds, a sample.
        rho: share of the full cascade's mean energy.
        data: what the samples are.
        samples: those that the figures below are from; of them come the certificates.
        searched: those that said where to look, and nothing else.
        seed: of the draw between them.
        fingerprint: sha256 over indices and labels of the samples, where they are a recipe's.
        seen: whether the networks were trained on the samples: `no` and `yes` are known, `unknown` is not.
        confidence: of each interval below.
        accuracy: share of right answers; none without labels.
        full_accuracy: the same of the full cascade.
        agreement: share of answers that are the full cascade's.
        macs: mean multiply-accumulates a sample.
        exits: share of samples that leave at each stage.
        latency: where it was measured.
    """

    name: Name
    rule: Literal["paper", "accuracy", "agreement", "cost", "latency"]
    thresholds: Annotated[tuple[float, ...], Field(min_length=1)]
    certified: bool
    method: str
    eps: Share | None = None
    delta: Share | None = None
    per_exit: bool | None = None
    budget: Annotated[float, Field(gt=0)] | None = None
    rho: Annotated[float, Field(gt=0)] | None = None
    data: str
    samples: Annotated[int, Field(gt=0)]
    searched: Count = 0
    seed: int = 0
    fingerprint: str | None = None
    seen: Literal["no", "yes", "unknown"]
    confidence: Share = 0.95
    accuracy: Estimate | None = None
    full_accuracy: Estimate | None = None
    agreement: Estimate
    macs: Estimate
    exits: tuple[Estimate, ...]
    latency: Latency | None = None

    @property
    def threshold(self) -> Threshold:
        """What a cascade takes: one number, or one a stage but the last."""
        return self.thresholds[0] if len(self.thresholds) == 1 else self.thresholds


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
    in_float: tuple[Literal["stem", "classifier", "additions"], ...] = ("stem", "classifier")

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


class Provenance(Frozen):
    """Where a bundle came from.

    Attributes:
        dataset: name of the training data.
        recipe: hash of the resolved recipe.
        created: UTC date and time, ISO 8601.
        opset: ONNX opset of the stage files.
        versions: package -> version.
        quantiser: how the int8 stages were made, where there are some.
    """

    dataset: str
    recipe: str
    created: str
    opset: Annotated[int, Field(gt=0)]
    versions: dict[str, str]
    quantiser: Quantiser | None = None


def _misfit(field: str, why: str) -> PydanticCustomError:
    """What is wrong between two parts of a manifest; `field` is the one to blame."""
    return PydanticCustomError("misfit", "{why}", {"field": field, "why": why})


class Manifest(Frozen):
    """A whole cascade, but for its weights."""

    format_version: Literal[2] = FORMAT_VERSION
    name: Name
    version: Name
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=64)]
    preprocess: Preprocess
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    exit: ExitRule
    calibration: Figures | None = None
    test: Figures | None = None
    golden: GoldenFile | None = None
    provenance: Provenance
    fused: Fused | None = None
    profiles: tuple[Profile, ...] = ()

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        size, classes = self.preprocess.size, len(self.labels)
        files = [stage.file for stage in self.stages]
        for number, stage in enumerate(self.stages):
            where = f"stages[{number}]"
            if stage.file in files[:number]:
                raise _misfit(f"{where}.file", f"{stage.file!r} is the file of an earlier stage already")
            if stage.role != ("student" if number == 0 else "residual"):
                raise _misfit(f"{where}.role", f"is {stage.role!r}: stage 0 is the student, the rest are residual")
            if stage.input.shape != (None, 3, size, size):
                raise _misfit(f"{where}.input.shape", f"{stage.input.shape} is not (None, 3, {size}, {size})")
            if stage.output.shape != (None, classes):
                raise _misfit(f"{where}.output.shape", f"{stage.output.shape} is not (None, {classes})")
        return self

    @model_validator(mode="after")
    def _figures_fit(self) -> Self:
        stages = len(self.stages)
        for name, figures in (("calibration", self.calibration), ("test", self.test)):
            if figures is not None and len(figures.sums) != stages:
                raise _misfit(f"{name}.sums", f"has {len(figures.sums)} entries for {stages} stages")
            if figures is not None and len(figures.exits) != stages:
                raise _misfit(f"{name}.exits", f"has {len(figures.exits)} entries for {stages} stages")
        return self

    @model_validator(mode="after")
    def _profiles_fit(self) -> Self:
        stages = len(self.stages)
        names = [profile.name for profile in self.profiles]
        for number, profile in enumerate(self.profiles):
            where = f"profiles[{number}]"
            if profile.name in names[:number]:
                raise _misfit(f"{where}.name", f"{profile.name!r} is the name of an earlier profile already")
            if len(profile.thresholds) not in (1, stages - 1):
                why = f"has {len(profile.thresholds)} for {stages} stages: one, or one for each stage but the last"
                raise _misfit(f"{where}.thresholds", why)
            if len(profile.exits) != stages:
                raise _misfit(f"{where}.exits", f"has {len(profile.exits)} entries for {stages} stages")
        return self

    @model_validator(mode="after")
    def _beside_the_stages_fit(self) -> Self:
        taken = [stage.file for stage in self.stages]
        for field, entry in self._beside_the_stages():
            if entry.file in taken:
                raise _misfit(f"{field}.file", f"{entry.file!r} is the file of something else already")
            taken.append(entry.file)
        if self.golden is not None and len(self.golden.tolerance) != len(self.stages):
            why = f"has {len(self.golden.tolerance)} entries for {len(self.stages)} stages"
            raise _misfit("golden.tolerance", why)
        if self.fused is not None and self.fused.pixels and self.preprocess.resize != "stretch":
            raise _misfit("fused.pixels", f"must be false: no graph does the rule {self.preprocess.resize!r}")
        return self

    def _beside_the_stages(self) -> list[tuple[str, GoldenFile | Fused]]:
        found = (("golden", self.golden), ("fused", self.fused))
        return [(field, entry) for field, entry in found if entry is not None]

    def files(self) -> list[tuple[str, Stage | GoldenFile | Fused]]:
        """Every file beside the manifest, stages first, with the field that declares it, e.g. `stages[0]`."""
        return [*((f"stages[{number}]", stage) for number, stage in enumerate(self.stages)), *self._beside_the_stages()]

    def costs(self) -> list[int]:
        """MACs of each stage, in order."""
        return [stage.macs for stage in self.stages]

    def document(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return self.model_dump(mode="json")
