"""The parts of a recipe: frozen models that refuse unknown keys, each key with its meaning and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cascade.combine import EnergyDefinition
from cascade.fields import Name
from cascade.manifest import Preprocess
from training.reasons import reasons

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
DESIGNED = "designed"
Rgb = tuple[float, float, float]


class Frozen(BaseModel):
    """Immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Augment(Frozen):
    """Batched augmentation.

    Attributes:
        pad: pixels of black around before a random crop; default 4, or 0 beside `area`.
        flip: mirror every second image.
        area: the smallest and the largest share of a picture's area that a random resized crop takes, in (0, 1]; its
            sides are 3:4 to 4:3, and it is brought to the network's size. Default no such crop.
    """

    pad: Annotated[int, Field(ge=0, le=64)] = 4
    flip: bool = True
    area: tuple[float, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _area_needs_no_pad(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("area") is not None:
            return {"pad": 0, **given}
        return given

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        if self.area is None:
            return self
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"area {list(self.area)} should be the smallest and the largest share of a picture that a crop takes, "
                "over 0 and 1 at most, such as [0.08, 1]"
            )
        if self.pad:
            raise ValueError(f"pad {self.pad} and area are two ways to crop: set pad to 0, or area to null")
        return self

    @model_serializer(mode="wrap")
    def _unless_asked_for(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe without `area` is the run that it was before there was such a key."""
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if key != "area" or value is not None}


class DataConfig(Frozen):
    """Which images, and what is set aside.

    Attributes:
        name: digits, cifar10, cifar100, fashion_mnist, or imagefolder:PATH.
        root: where downloads are kept.
        size: pixels a side; images of another size are resized as the bundle's preprocessing says.
        resize: `stretch`, or `short_side` to `resize_to` and a centre crop.
        resize_to: length of the short side before the crop, pixels.
        mean, std: of a channel, in [0, 1] units; default: measured on the training images.
        augment: of training batches.
        dv_fraction: share of the training set drawn as D_v.
        dv_exclude: keep D_v out of training, so that its energies are those of unseen images.
        test_fraction: share split off, a class at a time, where the data set has no test part of its own.
        train_per_class: train on this many images of each class, D_v's among them; default all. The test part stays.
        split_seed: of that split, that part and of D_v; apart from the run's seed, so that runs share them.
    """

    name: str
    root: str = "~/.cache/rescade"
    size: Annotated[int, Field(ge=8, le=1024)] = 32
    resize: Literal["stretch", "short_side"] = "stretch"
    resize_to: int | None = None
    mean: Rgb | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    augment: Augment = Augment()
    dv_fraction: Fraction = 0.1
    dv_exclude: bool = False
    test_fraction: Fraction = 0.2
    train_per_class: Annotated[int, Field(gt=0)] | None = None
    split_seed: int = 0

    @model_validator(mode="after")
    def _resizing_fits(self) -> Self:
        try:
            self.rule()
            self.kept()
        except ValidationError as error:
            raise ValueError(reasons(error, Preprocess)) from None
        return self

    def source(self) -> str:
        """The name, whichever way the path in it was written: absolute, without `~`, `..` and links."""
        kind, _, path = self.name.partition(":")
        return f"{kind}:{Path(path).expanduser().resolve()}" if kind == "imagefolder" and path else self.name

    def rule(self) -> Preprocess:
        """How an image becomes pixels; what they are normalised by is measured, unless it is given here."""
        return Preprocess(
            size=self.size,
            resize=self.resize,
            resize_to=self.resize_to,
            crop="none" if self.resize == "stretch" else "center",
            mean=self.mean or (0, 0, 0),
            std=self.std or (1, 1, 1),
        )

    def kept(self) -> Preprocess:
        """How images are kept in training: by `rule`, but square up to `resize_to` where `augment.area` crops them.

        The middle of such a picture is what `rule` gives, to the pixel. What is beside the square is lost, and a small
        crop is enlarged from it; a training that decodes each file anew would take it from the whole file.
        """
        rule = self.rule()
        if self.augment.area is None or rule.resize_to is None:
            return rule
        around = (rule.resize_to - rule.size) // 2
        return rule.model_copy(update={"size": rule.size + 2 * around})


class Runtime(Frozen):
    """What it runs on; changes the speed, and the result only by rounding.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: of the forward pass in training; evaluation is always fp32.
        channels_last: memory order of maps.
        compile: torch.compile.
        threads: CPU threads; default torch's choice.
        deterministic: refuse algorithms that differ from run to run.
        checkpoint_s: seconds between checkpoints inside an epoch; every epoch ends with one anyway.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    threads: Annotated[int, Field(gt=0)] | None = None
    deterministic: bool = True
    checkpoint_s: Positive = 60.0


class Schedule(Frozen):
    """How long and how fast: SGD with momentum.

    Attributes:
        epochs: passes over the training set.
        batch_size: samples, over all devices together.
        lr: the highest learning rate.
        policy: `one_cycle` (linear up, cosine down to 0), `cosine`, or `step`.
        warmup: share of the run that `one_cycle` climbs.
        milestones: shares of the run after which `step` multiplies by `factor`: 0.5 is half of the epochs.
        factor: of `step`.
        momentum, nesterov, weight_decay: of SGD.
        decay_norms: let the weight decay shrink biases and batch norm's parameters too, as the papers do. It can shrink
            a res-student whose labels judge the sum to nothing, since the stages before it leave small gradients.
        clip: largest gradient norm; 0 is off.
        select: which epoch's weights are the result: the `last`, or those with the lowest loss (`dv_loss`) or the
            highest accuracy (`dv_accuracy`) on D_v, which training then may not see.
    """

    epochs: Annotated[int, Field(gt=0)] = 250
    batch_size: Annotated[int, Field(gt=1)] = 128
    lr: Positive = 0.1
    policy: Literal["one_cycle", "cosine", "step"] = "step"
    warmup: Fraction = 0.25
    milestones: tuple[Fraction, ...] = (0.6, 0.8)
    factor: Fraction = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_norms: bool = True
    clip: Annotated[float, Field(ge=0)] = 0.0
    select: Literal["last", "dv_loss", "dv_accuracy"] = "last"

    @field_validator("milestones", mode="before")
    @classmethod
    def _shares(cls, given: Any) -> Any:
        if isinstance(given, list | tuple) and any(isinstance(x, int | float) and x >= 1 for x in given):
            raise ValueError(f"{list(given)} look like epochs: give shares of the run, 150 of 240 epochs is 0.625")
        return given


class MagnitudeConfig(Frozen):
    """Unstructured pruning of the teacher: rounds, each of which prunes and trains on.

    Attributes:
        sparsity: share of the weights that shall be gone after the last round; as near to it as whole rounds come.
        share: of what is left that goes in each round.
        method: what each round trains with; default plain cross-entropy.
        schedule: of each round; what differs from the recipe's. The last weights go into the next round, whatever the
            recipe selects, unless `select` is given here.
    """

    sparsity: Fraction = 0.79
    share: Fraction = 0.2
    method: dict[str, Any] = {"name": "vanilla"}
    schedule: Annotated[dict[str, Any], Field(validate_default=True)] = {}

    @field_validator("schedule")
    @classmethod
    def _no_early_stopping(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"select": "last", **given}


class SlimmingConfig(Frozen):
    """Channels cut from the student by the scales of its batch norms, and the training that follows.

    Attributes:
        rate: share of the channels that can go, of the whole network.
        floor: channels that every batch norm keeps, if it has as many.
        shared: let channels go that are added to a shortcut, all those of one sum together.
        method: of the training that follows; default plain cross-entropy.
        schedule: of that training; what differs from the recipe's.
    """

    rate: Fraction
    floor: Annotated[int, Field(gt=0)] = 8
    shared: bool = False
    method: dict[str, Any] = {"name": "vanilla"}
    schedule: dict[str, Any] = {}


class ResidualSlimming(SlimmingConfig):
    """Channels cut from each res-student. The default method of the training that follows is `res_kd`."""

    method: dict[str, Any] = {"name": "res_kd"}


class NetworkConfig(Frozen):
    """One network to train.

    Attributes:
        model: its name; `designed` is the dense network whose widths follow what pruning left of the teacher.
        method: the method's name and settings.
        schedule: what differs from the recipe's.
        start: folder of a finished run whose student's body, all but what follows the last map, is where it begins.
        slim: cut its channels when it is trained, and train on; train it with the method `slimming`.
    """

    model: str
    method: dict[str, Any]
    schedule: dict[str, Any] = {}
    start: str | None = None
    slim: SlimmingConfig | None = None


class TeacherConfig(Frozen):
    """The teacher: trained here (`model` and `method`), taken from a run, or a model with a weight file.

    Attributes:
        model: network name, e.g. resnet20_a or torchvision:resnet50; not with `run`.
        method, schedule: as for any network, when it is trained here.
        run: folder of a finished run whose teacher is taken.
        step: which network of that run, such as `teacher_round2`; default the one that taught there.
        weights: .safetensors, or a torch file that holds a plain state dict.
        prune: its weights before it teaches.
    """

    model: str | None = None
    method: dict[str, Any] | None = None
    schedule: dict[str, Any] = {}
    run: str | None = None
    step: Name | None = None
    weights: str | None = None
    prune: MagnitudeConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [self.method is not None, self.run is not None, self.weights is not None]
        if sum(sources) != 1:
            raise ValueError("a teacher needs exactly one of method (train it), run (take it), weights (load it)")
        if (self.model is None) != (self.run is not None):
            raise ValueError("a teacher needs a model, unless it comes from a run, which knows its own")
        if self.step is not None and self.run is None:
            raise ValueError("teacher.step is one of another run: name that run, or leave it out")
        return self


class Stop(Frozen):
    """When to add no further res-student. Whatever is given must hold; at least one is always trained.

    Attributes:
        energy: stop once Energy(S_i, D_v) > energy * Energy(T, D_v); ResKD Algorithm 1 has 0.9.
        count: stop once there are this many res-students; with `energy`, not before there are this many.
        max_stages: never more res-students than this.
    """

    energy: Positive | None = None
    count: Annotated[int, Field(gt=0)] | None = None
    max_stages: Annotated[int, Field(gt=0, le=32)] = 4

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        if self.energy is None and self.count is None:
            raise ValueError("stop needs energy, count or both")
        if self.count is not None and self.count > self.max_stages:
            raise ValueError(f"stop.count {self.count} is over stop.max_stages {self.max_stages}")
        return self

    def done(self, residuals: int, energy: float, teacher_energy: float) -> bool:
        """Whether to stop after `residuals` res-students, with the mean energies of S_i and T on D_v."""
        if residuals >= self.max_stages:
            return True
        enough = self.count is None or residuals >= self.count
        return enough and (self.energy is None or energy > self.energy * teacher_energy)


class ResidualConfig(Frozen):
    """The res-students: R_i has `models[i - 1]`, the last name is used for all that follow.

    Attributes:
        models: names of networks.
        method: its name and settings.
        schedule: what differs from the recipe's.
        stop: when there are enough.
        start: `fresh` begins from random weights, `previous` from the stage before, its classifier set to zero.
        slim: cut each one's channels when it is trained, and train on; as for the student.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    method: dict[str, Any] = {"name": "res_kd"}
    schedule: dict[str, Any] = {}
    stop: Stop = Stop(energy=0.9)
    start: Literal["fresh", "previous"] = "fresh"
    slim: ResidualSlimming | None = None

    @model_serializer(mode="wrap")
    def _unless_asked_for(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe without `slim` is the run that it was before there was such a key."""
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if key != "slim" or value is not None}


class ExitConfig(Frozen):
    """The exit rule that export computes: threshold = rho * Energy(reference, D_v), or a number."""

    definition: EnergyDefinition = "summed"
    rho: Positive = 0.9
    reference: Literal["S_n", "T"] = "S_n"
    threshold: float | None = None


class ExportConfig(Frozen):
    """The bundle that `rescade train` makes last; its threshold follows the recipe's `exit`.

    Attributes:
        folder: of the bundle, inside the run's.
        version: of the bundle.
        precision: fp32, fp16 or int8; or one a stage, such as `int8,fp32`.
        fused: put the whole cascade into one more ONNX file.
        pixels: let that file take uint8 images of any size.
    """

    folder: Name = "bundle"
    version: Name = "1"
    precision: Annotated[str, Field(pattern=r"^(fp32|fp16|int8)(,(fp32|fp16|int8))*$")] = "fp32"
    fused: bool = False
    pixels: bool = False

    @model_validator(mode="after")
    def _pixels_of_something(self) -> Self:
        if self.pixels and not self.fused:
            raise ValueError("pixels says something of the one file that fused makes: add fused, or leave pixels out")
        if self.folder in ("steps", "logits", "tensorboard"):
            raise ValueError(f"the run keeps files of its own in {self.folder!r}: take another folder")
        return self
