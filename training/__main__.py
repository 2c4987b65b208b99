"""`python -m training train | evaluate | sparsity | methods | recipes | models | reuse`, or `rescade train`, ..."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from cascade.errors import CascadeError
from training.device import is_first
from training.evaluate import evaluate
from training.methods.base import METHODS, described, import_all
from training.models import SIZE
from training.models.listing import listing
from training.models.reuse_cost import reuse_cost
from training.models.reused import parsed
from training.pruning.sparsity import sparsity_of, sparsity_table
from training.published import FOLDER, shipped
from training.recipe import load
from training.run import Run, open_run
from training.steps import run_recipe
from training.table import (
    accuracy_table,
    epochs_line,
    head_line,
    network_line,
    published_line,
    recipe_lines,
    reuse_lines,
)
from training.terminal import console_for


@click.group()
def main() -> None:
    """Train and evaluate."""


@main.command("train")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "--row", metavar="NAME", help="A published row to train, of those that RECIPE lists; see `rescade recipes`."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value over the recipe's.")
@click.option(
    "--scale", default=1.0, metavar="FACTOR", help="Multiply all epochs, and so schedules: 0.05 is a twentieth."
)
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A run whose networks are taken where nothing before them differs.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def train_command(
    recipe: Path,
    out: Path,
    row: str | None,
    settings: tuple[str, ...],
    scale: float,
    reuse: tuple[Path, ...],
    *,
    quiet: bool,
) -> tuple[Run, bool] | None:
    """Train a cascade from RECIPE. Run it again to go on where it was stopped.

    The bundle that a recipe may end in is made by `rescade train`, not by `python -m training train`.
    """
    try:
        run = run_recipe(load(recipe, settings, row).scaled(scale), out, quiet=quiet, reuse=reuse)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    return (run, quiet) if is_first() else None  # for `rescade`, which knows of export


@main.command("evaluate")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--sweep", is_flag=True, help="Also accuracy, cost and exits for every threshold from 0.05 to 1.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def evaluate_command(run: Path, *, as_json: bool, sweep: bool, quiet: bool) -> None:
    """Measure the finished RUN on D_v and test, and store every network's logits in it."""
    try:
        opened = open_run(run)
        evaluation = evaluate(opened, sweep_thresholds=sweep, quiet=quiet)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(evaluation.model_dump_json(indent=2))
        return
    for table in accuracy_table(evaluation):
        Console().print(table)
    for epochs in evaluation.epochs:
        click.echo(epochs_line(epochs, held_out=opened.recipe.data.dv_exclude))
    for head in evaluation.heads:
        click.echo(head_line(head))
    if evaluation.published is not None:
        click.echo(published_line(evaluation.published, evaluation.test))
    if evaluation.agreement is not None:
        click.echo(f"student and teacher agree on {evaluation.agreement:.2%} of the test images")


@main.command("sparsity")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def sparsity_command(run: Path, *, as_json: bool, quiet: bool) -> None:
    """Say what pruning left of the teacher of the finished RUN, and what it changed."""
    try:
        sparsity = sparsity_of(open_run(run), quiet=quiet)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(sparsity.model_dump_json(indent=2))
    else:
        table = sparsity_table(sparsity)
        console_for([table]).print(table)


@main.command("methods")
def methods_command() -> None:
    """List the methods that a recipe may name, with their settings."""
    import_all()
    for name, method in sorted(METHODS.items()):
        click.echo(f"{name}: {(method.__doc__ or '').splitlines()[0]}")
        for line in described(method.Config):
            click.echo(f"    {line}")


@main.command("recipes")
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def recipes_command(pattern: str, *, as_json: bool) -> None:
    """List the recipes that come with the project, and the published rows that each has; * marks the default row.

    PATTERN is a path, or for instance 'simkd/*'. Rows are accuracies of the papers in percent, mean and deviation.
    """
    found = {}
    for path in shipped():
        name = path.relative_to(FOLDER).as_posix()
        if fnmatch.fnmatch(name, pattern):
            found[name] = load(path)
    if not found:
        raise click.ClickException(f"no recipe's path matches {pattern!r}: quote it, or see `rescade recipes`")
    if as_json:
        click.echo(json.dumps({name: recipe.model_dump(mode="json") for name, recipe in found.items()}, indent=2))
        return
    click.echo(f"in {FOLDER}")
    for name, recipe in found.items():
        for line in recipe_lines(name, recipe):
            click.echo(line)


@main.command("models")
@click.argument("pattern", default="*")
@click.option("--classes", type=click.IntRange(1), default=100, show_default=True, help="Number of classes.")
@click.option("--size", type=click.IntRange(1), default=SIZE, show_default=True, help="Pixels a side.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def models_command(pattern: str, classes: int, size: int, *, as_json: bool) -> None:
    """List the networks that a recipe may name, with their cost; PATTERN is a name or, for instance, 'vgg*'."""
    found = []
    for entry in listing(pattern, classes, size):
        found.append(asdict(entry))
        if not as_json:
            click.echo(network_line(entry))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    if not found:
        raise click.ClickException(f"no network's name matches {pattern!r}: quote it, or see `rescade models`")


@main.command("reuse")
@click.argument("student")
@click.argument("teachers", nargs=-1, required=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As under method: reduction, stages, ...")
@click.option("--classes", type=click.IntRange(1), default=100, show_default=True, help="Number of classes.")
@click.option("--size", type=click.IntRange(1), default=SIZE, show_default=True, help="Pixels a side.")
def reuse_command(student: str, teachers: tuple[str, ...], settings: tuple[str, ...], classes: int, size: int) -> None:
    """Say what SimKD would serve for STUDENT and TEACHERS: parameters, pruning ratio and its cost."""
    try:
        found = reuse_cost(student, teachers, parsed(settings, "--set"), classes, size)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    for line in reuse_lines(found):
        click.echo(line)


if __name__ == "__main__":
    main()
