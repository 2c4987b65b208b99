"""`python -m export export | verify | show`, also as `rescade export`, ..."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from cascade import bundle
from cascade.errors import CascadeError
from export.show import tables
from export.verify import verify

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Make, check and read bundles."""


@main.command("export")
@click.argument("source", type=FOLDER)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of what is made.")
@click.option("--name", help="Name of the bundle; default the recipe's, or the source's with the precision.")
@click.option("--version", help="Version of the bundle; default the source's, or 1.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16 or int8; or one a stage: int8,fp32.")
@click.option("--search", is_flag=True, help="Measure precisions on D_v instead, and write the Pareto front to OUT.")
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What a BUNDLE came from.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value over that recipe's.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def export_command(
    source: Path,
    out: Path,
    name: str | None,
    version: str | None,
    precision: str,
    recipe: Path | None,
    settings: tuple[str, ...],
    *,
    search: bool,
    quiet: bool,
) -> None:
    """Make a bundle of SOURCE, a finished run or a bundle in float32, with its own threshold and figures.

    A run is checked against torch. A bundle is derived: its networks in other precisions.
    """
    from export.sources import is_bundle, opened

    try:
        if search:
            from export.search import run_search

            run_search(opened(source, recipe, settings, quiet=quiet), out, quiet=quiet)
        elif is_bundle(source) or precision != "fp32":
            _derive(source, out, precision, recipe, settings, name=name, version=version, quiet=quiet)
        else:
            _build(source, out, name=name, version=version or "1", quiet=quiet)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error


def _build(run: Path, out: Path, *, name: str | None, version: str, quiet: bool) -> None:
    from export.build import build
    from training.run import open_run

    built = build(open_run(run), out, name=name, version=version, quiet=quiet)
    click.echo(
        f"wrote {out}: {len(built.manifest.stages)} stages, threshold {built.manifest.exit.threshold:.6f}; same logits "
        f"as torch within {built.parity.largest:.1g} on {built.parity.samples} images, same classes and exits"
    )


def _derive(
    source: Path,
    out: Path,
    precision: str,
    recipe: Path | None,
    settings: tuple[str, ...],
    *,
    name: str | None,
    version: str | None,
    quiet: bool,
) -> None:
    from export.derive import derive, precisions_of
    from export.sources import opened

    start = opened(source, recipe, settings, quiet=quiet)
    kinds = precisions_of(precision, len(start.bundle.models))
    derived = derive(start.bundle, out, start.splits, kinds, name=name, version=version)
    click.echo(
        f"wrote {out}: {', '.join(kinds)}, threshold {derived.manifest.exit.threshold:.6f}; the same class as the "
        f"float32 cascade for {derived.same_classes:.2%} of the test images"
    )


@main.command("verify")
@click.argument("folder", metavar="BUNDLE", type=FOLDER)
def verify_command(folder: Path) -> None:
    """Check BUNDLE: digests, graphs, shapes, and that answers do not depend on the batch."""
    try:
        verified = verify(folder)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{folder} is whole: {verified.manifest.name} {verified.manifest.version}, {len(verified.manifest.stages)} "
        f"stages; logits differ by at most {verified.largest:.1g} between batch 1 and batch 7"
        f"{'; costs counted' if verified.counted else '; costs not counted, since there is no onnx'}"
    )


@main.command("show")
@click.argument("folder", metavar="BUNDLE", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def show_command(folder: Path, *, as_json: bool) -> None:
    """Say what is in BUNDLE: stages, exit rule, figures, provenance."""
    try:
        manifest = bundle.read_manifest(folder)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(manifest.document(), indent=2, ensure_ascii=False))
        return
    for table in tables(manifest):
        Console().print(table)


if __name__ == "__main__":
    main()
