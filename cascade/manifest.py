"""The bundle's manifest: frozen models that know the format and touch nothing.

A manifest describes the stages in the order they run, how an image becomes their input, the class labels, when a sample
may leave, the figures measured at export, and where it all came from. `FORMAT_VERSION` grows when a reader of the old
format would misread the new one; unknown versions are refused by `cascade.bundle`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from cascade.fields import Frozen, Name, Share
from cascade.files import Fused, GoldenFile, Quantiser, Stage
from cascade.rules import ExitRule, Profile

FORMAT_VERSION: Literal[2] = 2
READABLE = (1, 2)  # version 1 had no digest, golden samples, profiles, precisions and fused file, and means the same


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
