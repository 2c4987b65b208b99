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
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--name", help="Name of the bundle; default the recipe's, or the source's.")
@click.option("--version", help="Version of the bundle; default 1, or the source's.")
@click.option("--fused", is_flag=True, help="Put the whole cascade into one more ONNX file, cascade.onnx.")
@click.option("--pixels", is_flag=True, help="Let cascade.onnx take uint8 images of any size.")
@click.option(
    "--triton",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write cascade.onnx into this model repository for Triton too.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def export_command(
    source: Path,
    out: Path,
    name: str | None,
    version: str | None,
    triton: Path | None,
    *,
    fused: bool,
    pixels: bool,
    quiet: bool,
) -> None:
    """Export SOURCE, a finished run or a bundle, and write a bundle.

    A run's networks are exported to ONNX, its threshold calibrated, and the result checked against torch. A bundle's
    networks and threshold are taken as they are.
    """
    if (pixels or triton) and not fused:
        raise click.UsageError("--pixels and --triton say something of the one file that --fused makes: add --fused")
    derives = (source / bundle.MANIFEST).is_file()
    if derives and not fused:
        raise click.UsageError(f"{source} is a bundle already: say what to make of it, with --fused")
    try:
        if not derives:
            _export_run(source, out, name, version or "1", quiet=quiet)
        if fused:
            _export_fused(source if derives else out, out, name, version, triton, pixels=pixels)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error


def _export_run(run: Path, out: Path, name: str | None, version: str, *, quiet: bool) -> None:
    from export.build import build
    from training.run import open_run

    built = build(open_run(run), out, name=name, version=version, quiet=quiet)
    click.echo(
        f"wrote {out}: {len(built.manifest.stages)} stages, threshold {built.manifest.exit.threshold:.6f}; same logits "
        f"as torch within {built.parity.largest:.1g} on {built.parity.samples} images, same classes and exits"
    )


def _export_fused(
    source: Path, out: Path, name: str | None, version: str | None, triton: Path | None, *, pixels: bool
) -> None:
    from export import onefile
    from export.triton import write_repository

    made = onefile.export(source, out, pixels=pixels, name=name, version=version)
    click.echo(
        f"wrote {out / onefile.FILE}: all {len(made.models)} stages, same logits, classes and exits as one by one"
    )
    if triton is not None:
        click.echo(f"wrote {write_repository(made, triton)}")


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
