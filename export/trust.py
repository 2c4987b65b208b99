"""`rescade golden`, `keygen` and `sign`: what lets others trust a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade import bundle
from cascade.errors import CascadeError
from cascade.keys import generate, read_signer

if TYPE_CHECKING:
    from export.verify import Verified

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
KEY = click.Path(dir_okay=False, path_type=Path)
SIGNED = {True: "signed; nobody looked by whom: that takes --public-key", False: "not signed"}


@click.command("golden")
@click.argument("folder", metavar="BUNDLE", type=FOLDER)
@click.option("--recipe", type=KEY, required=True, help="Recipe of the run that it was exported from.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value over the recipe's.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def golden_command(folder: Path, recipe: Path, settings: tuple[str, ...], *, quiet: bool) -> None:
    """Give BUNDLE golden samples: images of the D_v that its recipe draws, with the logits they must get."""
    from export.golden import from_recipe  # it needs onnx, and training's data sets

    try:
        manifest = from_recipe(folder, recipe, settings, quiet=quiet)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    assert manifest.golden is not None, "that is what was asked for"
    click.echo(f"{folder} has {manifest.golden.samples} golden samples; a signature it had is gone: sign it again")


def golden_line(verified: Verified) -> str:
    """What the golden samples of a bundle have shown."""
    declared = verified.manifest.golden
    if declared is None or verified.golden is None:
        return "no golden samples: `rescade golden` adds them"
    pairs = zip(verified.golden, declared.tolerance, strict=True)
    differences = ", ".join(f"{found:.1g} of {allowed:.1g}" for found, allowed in pairs)
    return f"{declared.samples} golden samples: same classes and exits; logits differ a stage by {differences} allowed"


@click.command("keygen")
@click.argument("path", metavar="FILE", type=KEY)
def keygen_command(path: Path) -> None:
    """Make a pair of Ed25519 keys: FILE, for its owner alone, signs bundles, and FILE.pub checks them."""
    try:
        public, key_id = generate(path)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {path}, to be kept secret, and {public}, to be given away; key id {key_id}")


@click.command("sign")
@click.argument("folder", metavar="BUNDLE", type=FOLDER)
@click.option("--key", type=KEY, required=True, help="Private key, PEM, without a password.")
def sign_command(folder: Path, key: Path) -> None:
    """Sign BUNDLE, which must be whole: `manifest.sig` says that the key's owner vouches for every file of it."""
    try:
        signer = read_signer(key)
        bundle.sign(folder, signer)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"signed {folder} with key {signer.key_id}")
