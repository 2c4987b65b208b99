"""`python -m export export | calibrate | verify | show | golden | keygen | sign`, also as `rescade export`, ..."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from cascade import bundle
from cascade.errors import CascadeError
from cascade.files import ImageType
from cascade.keys import read_trusted
from export import make
from export.show import profile_table, tables
from export.trust import FOLDER, KEY, SIGNED, golden_command, golden_line, keygen_command, sign_command
from export.verify import verify

if TYPE_CHECKING:
    from training.run import Run

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Make, check and read bundles."""


@main.command("export")
@click.argument("source", type=FOLDER)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of what is made.")
@click.option("--name", help="Name of the bundle; default the recipe's, or the source's with the precision.")
@click.option("--version", help="Version of the bundle; default the source's, or 1.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16 or int8; or one a stage: int8,fp32.")
@click.option(
    "--input",
    "takes",
    type=click.Choice(["uint8", "float32"]),
    help="What the stages take: pixels, or images normalised by the manifest's rule. Default uint8, or, where --fused "
    "takes a bundle as it is, what it has.",
)
@click.option("--search", is_flag=True, help="Measure precisions on D_v instead, and write the Pareto front to OUT.")
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What a BUNDLE came from.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value over that recipe's.")
@click.option("--fused", is_flag=True, help="Put the whole cascade into one more ONNX file, cascade.onnx.")
@click.option("--pixels", is_flag=True, help="Let cascade.onnx take uint8 images of any size.")
@click.option(
    "--triton", type=click.Path(file_okay=False, path_type=Path), help="Write it as a model for Triton here too."
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def export_command(
    source: Path,
    out: Path,
    name: str | None,
    version: str | None,
    precision: str,
    recipe: Path | None,
    settings: tuple[str, ...],
    triton: Path | None,
    takes: ImageType | None,
    *,
    search: bool,
    fused: bool,
    pixels: bool,
    quiet: bool,
) -> None:
    """Make a bundle of SOURCE, a finished run or a bundle in float32, with its own threshold and figures.

    A run is checked against torch. A bundle is derived: its networks in other precisions. With --fused the cascade is
    put into one file as well, and a bundle of any precision is otherwise taken as it is.
    """
    if (pixels or triton) and not fused:
        raise click.UsageError("--pixels and --triton say something of the one file that --fused makes: add --fused")
    if search and fused:
        raise click.UsageError("--search makes no bundle that --fused could put into one file")
    if search and takes:
        raise click.UsageError("--search makes no bundle, and --input says what the stages of one take: leave one out")
    is_bundle = (source / bundle.MANIFEST).is_file()
    try:
        if search:
            from export.search import run_search
            from export.sources import opened

            run_search(opened(source, recipe, settings, quiet=quiet), out, quiet=quiet)
        elif is_bundle and fused and precision == "fp32":
            make.fuse(source, out, triton, name=name, version=version, pixels=pixels, takes=takes)
            return
        elif is_bundle or precision != "fp32":
            make.derive(source, out, precision, recipe, settings, name=name, version=version, takes=takes, quiet=quiet)
        else:
            make.build(source, out, name=name, version=version or "1", takes=takes, quiet=quiet)
        if fused:
            make.fuse(out, out, triton, pixels=pixels)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error


def export_last(run: Run, *, quiet: bool) -> None:
    """Make the bundle that a recipe ends in, as `rescade train` does.

    Raises:
        ClickException: it cannot be made.
    """
    from export.last import last

    try:
        last(run, quiet=quiet)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error


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
        f"{'; costs counted' if verified.counted else '; costs not counted, since there is no onnx'}"
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


@main.command("calibrate")
@click.argument("folder", metavar="BUNDLE", type=FOLDER)
@click.option("--data", help="Held-out images: a recipe, whose D_v is taken; a folder of class folders; cifar10, ...")
@click.option("--logits", type=FILE, help="Instead: an .npz file with stage0, stage1, ... (N, K), and labels (N,).")
@click.option("--rule", "rules", multiple=True, help="What a profile is to keep, e.g. 'accuracy(0.01, 0.1)'.")
@click.option("--per-stage", is_flag=True, help="Search a threshold for each stage, instead of one for all.")
@click.option("--seed", default=0, show_default=True, help="Of the draw between samples that search and that certify.")
@click.option("--latency", is_flag=True, help="Measure the stages at batch 1; a rule latency(ms) does so anyway.")
@click.option(
    "--allow-seen", is_flag=True, help="Calibrate on samples that were trained on; nothing is certified then."
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page with drawings.")
@click.option("--png", type=click.Path(file_okay=False, path_type=Path), help="Write the drawings into this folder.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def calibrate_command(folder: Path, **options: Any) -> None:
    """Write profiles into BUNDLE: thresholds under a name, some with a guarantee.

    Rules: paper, accuracy(eps, delta), agreement(eps, delta), cost(macs), latency(ms). A profile of a name that is
    there already is replaced, the others stay.
    """
    from export.profiling import Wishes, calibrate

    try:
        profiles = calibrate(folder, Wishes(**options))
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    Console().print(profile_table(profiles))


for command in (golden_command, keygen_command, sign_command):
    main.add_command(command)


if __name__ == "__main__":
    main()
