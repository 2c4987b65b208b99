"""Bundle to bundle: the same networks in other precisions, with their own threshold and their own figures. No torch."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import BundleError
from cascade.figures import Sample, energy_threshold, mean_energy, measure, running_sums
from cascade.files import ImageType, Precision, Quantiser, Stage
from cascade.manifest import Figures, Manifest, Provenance
from cascade.replay import replay
from cascade.rules import ExitRule
from export import golden
from export import splits as image_splits
from export.count import count
from export.pixel_input import taking
from export.precision import optimised, to_fp16, to_int8
from export.session import Session, sessions
from export.splits import Splits
from export.verify import check
from export.versions import versions

RANGES: tuple[tuple[str, float | None], ...] = (
    ("minmax", None),
    ("entropy", None),
    ("percentile", 99.999),
    ("percentile", 99.99),
)


@dataclass(frozen=True)
class Derived:
    """What a derivation gives back.

    Attributes:
        manifest: that was written.
        same_classes: share of test images whose class from the adaptive cascade is the source's.
    """

    manifest: Manifest
    same_classes: float


def precisions_of(text: str, stages: int) -> tuple[Precision, ...]:
    """`int8` for every stage, or `int8,fp32`: one a stage.

    Raises:
        BundleError: an unknown precision, or another number of them than stages.
    """
    names = text.split(",")
    try:
        known = TypeAdapter(tuple[Precision, ...]).validate_python(names)
    except ValidationError as error:
        raise BundleError("precision", f"{text!r}: a precision is fp32, fp16 or int8") from error
    if len(known) not in (1, stages):
        raise BundleError("precision", f"{text!r} names {len(known)} precisions for {stages} stages: name one, or each")
    return known * stages if len(known) == 1 else known


def source_of(folder: Path) -> Bundle:
    """Read a bundle to derive from; its graphs take normalised images, whatever they take in the file.

    Raises:
        BundleError: it is not whole, or not in float32 any more.
    """
    read = bundle.read(folder)
    for number, stage in enumerate(read.manifest.stages):
        if stage.precision != "fp32":
            raise BundleError(f"stages[{number}].precision", f"is {stage.precision} already: begin from float32")
    return taking(read, "float32")


def derive(
    source: Bundle,
    folder: Path,
    splits: Splits,
    precisions: Sequence[Precision],
    *,
    quantiser: Quantiser | None = None,
    name: str | None = None,
    version: str | None = None,
    takes: ImageType = "uint8",
) -> Derived:
    """Write a bundle with the same networks in other precisions.

    Args:
        source: in float32, from `source_of`.
        folder: of the new bundle; an older one there is replaced.
        splits: the images that the source was made with; proven by its fingerprint and figures.
        precisions: one a stage.
        quantiser: of the int8 stages; default: the ranges that are best on D_v.
        name: default the source's and the precisions, like `cifar10-int8` or `cifar10-int8-fp32`.
        version: default the source's.
        takes: what the new graphs take, pixels or normalised images.

    Raises:
        BundleError: the images are others, or a derived graph fails the checks of `verify`.
    """
    before = sessions(source.models, source.manifest.preprocess)
    dv = splits.dv.sample(before, source.manifest.costs())
    image_splits.check(splits, source.manifest, dv)
    if "int8" in precisions and quantiser is None:
        quantiser = best_quantiser(source, splits, precisions, dv)
    models = [converted(model, kind, splits, quantiser) for model, kind in zip(source.models, precisions, strict=True)]
    stages = tuple(
        derived_stage(stage, model, kind)
        for stage, model, kind in zip(source.manifest.stages, models, precisions, strict=True)
    )
    costs = [stage.macs for stage in stages]
    after = sessions(models, source.manifest.preprocess)
    own, test = splits.dv.sample(after, costs), splits.test.sample(after, costs)
    rule = exit_rule(source.manifest.exit, own)
    changes = {
        "name": name or _name(source.manifest.name, precisions),
        "version": version or source.manifest.version,
        "stages": stages,
        "exit": rule,
        "profiles": (),  # what was certified of other networks is not of these
        "calibration": _figures(own, rule, source.manifest.calibration),
        "test": _figures(test, rule, source.manifest.test),
        "provenance": _provenance(source.manifest.provenance, quantiser if "int8" in precisions else None),
        "fused": None,  # that file is of the networks as they were
    }
    manifest = bundle.parse(source.manifest.model_copy(update={**changes, "golden": None}).document())
    candidates = np.ascontiguousarray(splits.dv.pixels[: golden.CANDIDATES].transpose(0, 2, 3, 1))
    logits = [each[: len(candidates)] for each in own.stage_logits]
    whole = taking(golden.make(manifest, models, candidates, logits, after), takes)
    check(whole)
    bundle.write(folder, whole.manifest, whole.files())
    manifest = whole.manifest
    theirs = _classes(splits.test.sample(before, source.manifest.costs()), source.manifest.exit)
    return Derived(manifest, float((_classes(test, rule) == theirs).mean()))


def _classes(sample: Sample, rule: ExitRule) -> NDArray[np.int64]:
    return replay(sample.stage_logits, rule.threshold, rule.definition).classes


def _provenance(source: Provenance, quantiser: Quantiser | None) -> Provenance:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    changes = {"created": now, "versions": {**source.versions, **versions()}, "quantiser": quantiser}
    return source.model_copy(update=changes)


def converted(model: bytes, kind: Precision, splits: Splits, quantiser: Quantiser | None) -> bytes:
    """One stage's float32 file in another precision; `fp32` is the same with its shortcuts optimised."""
    if kind == "fp16":
        return to_fp16(optimised(model))
    if kind == "int8":
        assert quantiser is not None, "whoever asks for int8 says how"
        return to_int8(model, splits.train.inputs(0, quantiser.images), quantiser, splits.train.rule)
    return optimised(model)


def derived_stage(stage: Stage, model: bytes, kind: Precision) -> Stage:
    """The manifest's stage for a converted file: its costs are what its own graph does."""
    own = count(model)
    changes = {"graph_params": own.params, "macs": own.macs, "precision": kind}
    return stage.model_copy(update={"sha256": bundle.sha256(model), **changes})


def exit_rule(source: ExitRule, dv: Sample) -> ExitRule:
    """The source's rule on other logits of the same D_v.

    A threshold that is a share of S_n's energy moves with S_n; one that was given, or is a share of T's energy, stays.
    """
    rule = source.rule
    if rule.name == "fixed" or rule.reference != "S_n" or rule.ratio is None:
        return source
    total = running_sums(dv.stage_logits)[-1]
    moved = rule.model_copy(update={"energy": mean_energy(total)})
    return source.model_copy(update={"threshold": energy_threshold(total, rule.ratio), "rule": moved})


def best_quantiser(source: Bundle, splits: Splits, precisions: Sequence[Precision], dv: Sample) -> Quantiser:
    """Choose how ranges are found: by accuracy of the adaptive cascade on D_v, and among equals by the nearest logits.

    Args:
        source: in float32.
        splits: the source's images.
        precisions: one a stage.
        dv: the source's logits on D_v.
    """
    found: list[tuple[float, float, Quantiser]] = []
    for method, percentile in RANGES:
        options = Quantiser.model_validate(
            {"method": method, "percentile": percentile, "images": len(splits.train.labels)}
        )
        logits = list(dv.stage_logits)
        for stage, kind in enumerate(precisions):
            if kind == "int8":
                model = converted(source.models[stage], kind, splits, options)
                logits[stage] = splits.dv.sample(
                    [Session(model, f"stages[{stage}].file", splits.dv.rule)], [0]
                ).stage_logits[0]
        sample = Sample("dv", dv.labels, logits, dv.costs)
        rule = exit_rule(source.manifest.exit, sample)
        right = replay(logits, rule.threshold, rule.definition).accuracy(dv.labels)
        far = sum(float(np.square(ours - theirs).mean()) for ours, theirs in zip(logits, dv.stage_logits, strict=True))
        found.append((right, -far, options))
    return max(found, key=lambda each: each[:2])[2]


def _figures(sample: Sample, rule: ExitRule, source: Figures | None) -> Figures:
    """Measured anew, but for the teacher, who is not in the bundle and stays as the source has him."""
    figures = measure(sample, rule.threshold, rule.definition)
    return figures.model_copy(update={"teacher": source.teacher if source else None})


def _name(name: str, precisions: Sequence[Precision]) -> str:
    kinds = [kind for kind, _ in itertools.groupby(precisions)]
    return name if kinds == ["fp32"] else f"{name}-{'-'.join(precisions if len(kinds) > 1 else kinds)}"
