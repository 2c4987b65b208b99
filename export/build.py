"""A finished run to a bundle: export every stage, calibrate on the exported networks, prove parity, measure, write."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import track
from torch import nn

from cascade import bundle
from cascade.errors import BundleError
from cascade.fields import Name
from cascade.figures import Sample, measure
from cascade.files import ImageType, Input, Stage, Tensor
from cascade.manifest import Manifest, Preprocess, Provenance
from export import golden, kept, parity
from export.calibrate import exit_rule
from export.count import Count, count
from export.pixel_input import taking
from export.precision import optimised
from export.session import Array, Session, sessions
from export.to_onnx import INPUT, OPSET, OUTPUT, to_onnx
from export.verify import golden_differences
from export.versions import versions
from training.data import Batches, Data, Split, load
from training.device import choose
from training.evaluate import labels_of, logits_of
from training.models.count import macs, params
from training.models.dirac import fold_dirac
from training.recipe import Recipe
from training.run import Run
from training.settings import Runtime

PARITY_IMAGES = 256


@dataclass(frozen=True)
class Built:
    """What an export gives back: the manifest that was written, and what parity was checked on."""

    manifest: Manifest
    parity: parity.Parity


def build(
    run: Run,
    folder: Path,
    *,
    name: str | None = None,
    version: str = "1",
    takes: ImageType = "uint8",
    quiet: bool = False,
) -> Built:
    """Export a run.

    Args:
        run: finished.
        folder: of the bundle; an older bundle there is replaced.
        name: of the bundle; default the recipe's.
        version: of the bundle.
        takes: what its graphs take, pixels or normalised images.
        quiet: show no progress.

    Raises:
        RecipeError: the run has not finished.
        BundleError: an exported network does not do what torch does, the folder is not a bundle's, or the name or the
            version is none.
    """
    console = Console(stderr=True, quiet=quiet)
    recipe = run.recipe
    name, version = _checked("name", name or recipe.name), _checked("version", version)
    choose(Runtime(device="cpu", threads=recipe.runtime.threads))
    data = load(recipe.data, quiet=quiet)
    loaded = [run.network(step) for step in run.stages()]
    nets = [net for _, net in loaded]
    size = data.preprocess.size
    models = [optimised(to_onnx(net, size)) for net in track(nets, "exporting", console=console, transient=True)]
    counts = [count(model, f"stages[{number}]") for number, model in enumerate(models)]
    for number, (net, found) in enumerate(zip(nets, counts, strict=True)):
        kept.check(net, size, found, f"stages[{number}]")
    costs = [found.macs for found in counts]
    stage_sessions = sessions(models, data.preprocess)
    teaching = run.teacher()
    teacher = run.network(teaching)[1] if teaching else None
    samples = {
        split_name: _measure_split(split_name, split, data, costs, stage_sessions, teacher, console)
        for split_name, split in (("dv", data.dv), ("test", data.test))
    }
    rule = exit_rule(recipe.exit, samples["dv"], data.dv.fingerprint(), held_out=recipe.data.dv_exclude)
    images = pixels_of(Split(data.dv.images, data.dv.labels, data.dv.index[:PARITY_IMAGES]), data)
    compared = parity.check(nets, stage_sessions, images, rule.threshold, rule.definition)
    manifest = Manifest(
        name=name,
        version=version,
        stages=tuple(
            _stage(number, network, net, model, found, data.preprocess, len(data.classes))
            for number, ((network, net), model, found) in enumerate(zip(loaded, models, counts, strict=True))
        ),
        preprocess=data.preprocess,
        labels=data.classes,
        exit=rule,
        calibration=measure(samples["dv"], rule.threshold, rule.definition),
        test=measure(samples["test"], rule.threshold, rule.definition),
        provenance=_provenance(recipe),
    )
    candidates = data.dv.images[data.dv.index[: golden.CANDIDATES]].cpu().numpy()
    made = golden.make(
        manifest, models, candidates, [each[: len(candidates)] for each in samples["dv"].stage_logits], stage_sessions
    )
    whole = taking(made, takes)
    golden_differences(whole, sessions(whole.models, data.preprocess))
    bundle.write(folder, whole.manifest, whole.files())
    return Built(whole.manifest, compared)


def _checked(field: str, value: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(value)
    except ValidationError as error:
        raise BundleError(
            field, f"{value!r} must be up to 100 letters, digits, dots, dashes and underscores, the first no sign"
        ) from error


def pixels_of(split: Split, data: Data) -> Array:
    """A split's images as network input: (N, 3, S, S) float32."""
    batches = Batches(data.preprocess, split.images.device)
    images: Array = np.concatenate([batch.images.contiguous().numpy() for batch in batches.plain(split, 500)])
    return images


def _measure_split(
    name: str,
    split: Split,
    data: Data,
    costs: Sequence[int],
    stages: Sequence[Session],
    teacher: nn.Module | None,
    console: Console,
) -> Sample:
    size = data.preprocess.size
    batches = Batches(data.preprocess, split.images.device)
    parts: list[list[Array]] = [[] for _ in stages]
    starts = range(0, len(split), 500)
    for start in track(starts, f"measuring {name}", console=console, transient=True):
        images = pixels_of(Split(split.images, split.labels, split.index[start : start + 500]), data)
        for part, session in zip(parts, stages, strict=True):
            part.append(session.in_batches(images, 100))
    return Sample(
        split=name,
        labels=labels_of(split),
        stage_logits=[np.concatenate(part) for part in parts],
        costs=costs,
        teacher_logits=None if teacher is None else logits_of([teacher], split, batches)[0],
        teacher_cost=0 if teacher is None else macs(teacher, size),
    )


def _stage(
    number: int, network: str, net: nn.Module, model: bytes, found: Count, rule: Preprocess, classes: int
) -> Stage:
    return Stage(
        role="student" if number == 0 else "residual",
        network=network,
        file=f"stage{number}.onnx",
        sha256=bundle.sha256(model),
        params=params(fold_dirac(net)),
        graph_params=found.params,
        macs=found.macs,
        input=Input(name=INPUT, shape=(None, 3, rule.size, rule.size)),
        output=Tensor(name=OUTPUT, shape=(None, classes)),
    )


def _provenance(recipe: Recipe) -> Provenance:
    kind, colon, path = recipe.data.name.partition(":")
    return Provenance(
        dataset=f"{kind}{colon}{Path(path).name}",
        recipe=recipe.run_id(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        opset=OPSET,
        versions=versions(),
    )
