"""`rescade calibrate`: held-out samples in, profiles in the bundle's manifest, a page and pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cascade import bundle
from cascade.bundle import Bundle
from cascade.errors import RecipeError
from cascade.rules import Profile
from export import rules
from export.heldout import HeldOut, find, from_logits
from export.latency import measure
from export.profiles import profile

DEFAULT = ("paper", "accuracy(0.01, 0.1)", "accuracy(0.02, 0.1)", "agreement(0.01, 0.1)")


@dataclass(frozen=True)
class Wishes:
    """What was asked for on the command line.

    Attributes:
        data: a recipe, a folder of class folders, or the name of a data set.
        logits: a file of logits instead.
        rules: as they are written; default a few of each kind.
        per_stage: a threshold for each stage.
        seed: of the draw between samples that search and that certify.
        latency: whether to measure the stages' times.
        allow_seen: go on although the samples were trained on.
        report: HTML file to write.
        png: folder for pictures.
        quiet: show no progress.
    """

    data: str | None = None
    logits: Path | None = None
    rules: Sequence[str] = ()
    per_stage: bool = False
    seed: int = 0
    latency: bool = False
    allow_seen: bool = False
    report: Path | None = None
    png: Path | None = None
    quiet: bool = False


def calibrate(folder: Path, wishes: Wishes) -> list[Profile]:
    """Find the profiles, write them into the bundle, and draw what was asked for.

    Args:
        folder: of the bundle; it is replaced as a whole, once all is found.
        wishes: what to do.

    Returns:
        The new profiles.

    Raises:
        BundleError: the bundle is broken, or cannot be written.
        RecipeError: the samples or a rule are not what calibration needs, or were trained on.
    """
    wanted = [rules.parse(text, "-per-stage" if wishes.per_stage else "") for text in wishes.rules or DEFAULT]
    names = [rule.name for rule in wanted]
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise RecipeError(f"two rules are called {repeated[0]!r}: write NAME= before one of them")
    if wishes.report is not None or wishes.png is not None:
        from export import drawings

        drawings.require()
    read = bundle.read(folder)
    console = Console(stderr=True)
    held_out = _samples(read, wishes, console)
    timed = wishes.latency or any(rule.kind == "latency" for rule in wanted)
    timing = measure(read) if timed else None
    definition = read.manifest.exit.definition
    found = [
        profile(
            rule,
            held_out,
            read.manifest.costs(),
            definition,
            per_stage=wishes.per_stage,
            seed=wishes.seed,
            timing=timing,
        )
        for rule in wanted
    ]
    page = _draw(read, held_out, found, wishes)
    _write(folder, read, found)
    if wishes.report is not None:  # after the bundle, in whose folder it may be
        try:
            wishes.report.write_text(page, encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"cannot write the report to {wishes.report}: {error.strerror}") from error
    return found


def _samples(read: Bundle, wishes: Wishes, console: Console) -> HeldOut:
    if (wishes.data is None) == (wishes.logits is None):
        raise RecipeError("say either --data or --logits: images to run, or logits that are there already")
    if wishes.logits is not None:
        held_out = from_logits(wishes.logits, read.manifest)
    else:
        held_out = find(wishes.data or "", read, Console(stderr=True, quiet=wishes.quiet))
    if held_out.seen == "yes" and not wishes.allow_seen:
        raise RecipeError(
            f"the samples were trained on: {held_out.why}. Energies of trained samples are too high for a threshold. "
            "Take others, or say --allow-seen, and nothing is certified"
        )
    style = {"yes": "bold red", "no": "green", "unknown": "yellow"}[held_out.seen]
    console.print(f"{len(held_out)} samples, trained on: {held_out.seen}; {held_out.why}", style=style, highlight=False)
    return held_out


def _write(folder: Path, read: Bundle, found: Sequence[Profile]) -> None:
    names = {each.name for each in found}
    kept = [each for each in read.manifest.profiles if each.name not in names]
    manifest = read.manifest.model_copy(update={"profiles": (*kept, *found)})
    bundle.write(folder, manifest, read.files())


def _draw(read: Bundle, held_out: HeldOut, found: Sequence[Profile], wishes: Wishes) -> str:
    if wishes.report is None and wishes.png is None:
        return ""
    from export import drawings, report

    drawn = report.draw(read.manifest, held_out, found)
    if wishes.png is not None:
        drawings.png(drawn, wishes.png)
    return report.page(read.manifest, held_out, found, drawn)
