"""What `rescade export` makes of a run or a bundle, and the line that it says of it."""

from __future__ import annotations

from pathlib import Path

import click

from cascade.files import ImageType

PIXELS: ImageType = "uint8"


def build(
    run: Path,
    out: Path,
    *,
    name: str | None = None,
    version: str = "1",
    takes: ImageType | None = None,
    quiet: bool = False,
) -> None:
    """A finished run to a bundle in float32, whose stages take pixels unless something else is said.

    Raises:
        CascadeError: as `export.build.build`.
    """
    from export import build as builder
    from training.run import open_run

    built = builder.build(open_run(run), out, name=name, version=version, takes=takes or PIXELS, quiet=quiet)
    click.echo(
        f"wrote {out}: {len(built.manifest.stages)} stages, threshold {built.manifest.exit.threshold:.6f}; same logits "
        f"as torch within {built.parity.largest:.1g} on {built.parity.samples} images, same classes and exits"
    )


def fuse(
    source: Path,
    out: Path,
    triton: Path | None = None,
    *,
    name: str | None = None,
    version: str | None = None,
    pixels: bool = False,
    takes: ImageType | None = None,
) -> None:
    """A bundle to one with its cascade in one file as well, and to a model repository for Triton.

    Raises:
        BundleError: as `export.onefile.export`.
    """
    from export import onefile
    from export.triton import write_repository

    made = onefile.export(source, out, pixels=pixels, name=name, version=version, takes=takes)
    click.echo(
        f"wrote {out / onefile.FILE}: all {len(made.models)} stages, same logits, classes and exits as one by one"
    )
    if triton is not None:
        click.echo(f"wrote {write_repository(made, triton)}")


def derive(
    source: Path,
    out: Path,
    precision: str,
    recipe: Path | None = None,
    settings: tuple[str, ...] = (),
    *,
    name: str | None = None,
    version: str | None = None,
    takes: ImageType | None = None,
    quiet: bool = False,
) -> None:
    """A bundle or a run to a bundle in other precisions.

    Raises:
        CascadeError: as `export.sources.opened` and `export.derive.derive`.
    """
    from export import derive as deriver
    from export.sources import opened

    start = opened(source, recipe, settings, quiet=quiet)
    kinds = deriver.precisions_of(precision, len(start.bundle.models))
    derived = deriver.derive(start.bundle, out, start.splits, kinds, name=name, version=version, takes=takes or PIXELS)
    click.echo(
        f"wrote {out}: {', '.join(kinds)}, threshold {derived.manifest.exit.threshold:.6f}; the same class as the "
        f"float32 cascade for {derived.same_classes:.2%} of the test images"
    )
