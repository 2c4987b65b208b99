"""`python -m export export | verify | show | golden | keygen | sign`, also as `rescade export`, ..."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from cascade import bundle
from cascade.errors import CascadeError
from cascade.keys import read_trusted
from export.show import tables
from export.trust import FOLDER, KEY, SIGNED, golden_command, golden_line, keygen_command, sign_command
from export.verify import verify


@click.group()
def main() -> None:
    """Make, check and read bundles."""


@main.command("export")
@click.argument("run", type=FOLDER)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--name", help="Name of the bundle; default the recipe's.")
@click.option("--version", default="1", show_default=True, help="Version of the bundle.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def export_command(run: Path, out: Path, name: str | None, version: str, *, quiet: bool) -> None:
    """Export the finished RUN, calibrate its threshold, check it against torch, and write a bundle."""
    from export.build import build
    from training.run import open_run

    try:
        built = build(open_run(run), out, name=name, version=version, quiet=quiet)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"wrote {out}: {len(built.manifest.stages)} stages, threshold {built.manifest.exit.threshold:.6f}; same logits "
        f"as torch within {built.parity.largest:.1g} on {built.parity.samples} images, same classes and exits"
    )


@main.command("verify")
@click.argument("folder", metavar="BUNDLE", type=FOLDER)
@click.option("--public-key", "keys", type=KEY, multiple=True, help="One of these must have signed it.")
def verify_command(folder: Path, keys: tuple[Path, ...]) -> None:
    """Check BUNDLE: signature, digests, graphs, shapes, and that answers are those it was made with, in any batch."""
    try:
        verified = verify(folder, read_trusted(keys) if keys else None)
        signed = bundle.signature_of(folder) is not None
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{folder} is whole: {verified.manifest.name} {verified.manifest.version}, {len(verified.manifest.stages)} "
        f"stages; logits differ by at most {verified.largest:.1g} between batch 1 and batch 7"
    )
    click.echo(golden_line(verified))
    click.echo("signed by a key that was given" if keys else SIGNED[signed])


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


for command in (golden_command, keygen_command, sign_command):
    main.add_command(command)


if __name__ == "__main__":
    main()
