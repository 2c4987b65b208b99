"""The one command's front door, `rescade train | evaluate | export | calibrate | verify | serve | health | bench`.

It is the client's as well.

Each verb lives in its own package and is imported only when asked for, so that serving never loads torch. So are the
classes that a program which uses a server imports from here: `from rescade import Client`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bench.client import AsyncClient
    from bench.errors import ClientError, Refused
    from bench.retry import Retry
    from bench.sync import Client

__all__ = ["AsyncClient", "Client", "ClientError", "Refused", "Retry", "main"]

VERBS = {
    "train": ("training.__main__", "train_command", "Train a cascade from a recipe."),
    "evaluate": ("training.__main__", "evaluate_command", "Measure a finished run, and store its logits."),
    "sparsity": ("training.__main__", "sparsity_command", "Say what pruning left of a run's teacher."),
    "methods": ("training.__main__", "methods_command", "List the training methods."),
    "recipes": ("training.__main__", "recipes_command", "List the recipes, and what was published of them."),
    "models": ("training.__main__", "models_command", "List the networks, with their cost."),
    "reuse": ("training.__main__", "reuse_command", "Count what SimKD would serve of a student and its teachers."),
    "export": ("export.__main__", "export_command", "Make a bundle of a finished run."),
    "calibrate": (
        "export.__main__",
        "calibrate_command",
        "Find thresholds with a guarantee, and write them into a bundle.",
    ),
    "verify": ("export.__main__", "verify_command", "Check a bundle, and run it."),
    "show": ("export.__main__", "show_command", "Say what is in a bundle."),
    "profile": ("export.compare", "profile_command", "Say what networks take, side by side."),
    "golden": ("export.trust", "golden_command", "Give a bundle golden samples."),
    "keygen": ("export.trust", "keygen_command", "Make a pair of keys to sign bundles with."),
    "sign": ("export.trust", "sign_command", "Sign a bundle."),
    "serve": ("server.__main__", "serve", "Serve a bundle over HTTP."),
    "health": ("server.health", "health", "Ask a server on this machine whether it is ready."),
    "bench": ("bench.__main__", "bench_command", "Measure a running server."),
}
FOR_PROGRAMS = {
    "AsyncClient": "bench.client",
    "Client": "bench.sync",
    "ClientError": "bench.errors",
    "Refused": "bench.errors",
    "Retry": "bench.retry",
}
TRAINING_PACKAGES = {
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "yaml",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
}


def __getattr__(name: str) -> Any:
    """Import what a program asks for, when it does."""
    if name not in FOR_PROGRAMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(FOR_PROGRAMS[name]), name)


class Verbs(click.Group):
    """A group that imports a verb's package when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; some import more once they know what they were asked.

        Raises:
            ClickException: its packages are not installed.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in TRAINING_PACKAGES:
                raise
            raise click.ClickException(f"this needs the package {error.name!r}: pip install '.[train]'") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items()])


@click.command(cls=Verbs)
@click.version_option(package_name="rescade")
def main() -> None:
    """Train, export, serve and measure sample-adaptive cascades of image classifiers."""


@main.result_callback()
def finish(trained: Any) -> None:
    """Make the bundle that a recipe ends in; here, because training knows nothing of export."""
    if trained is None or trained[0].recipe.export is None:
        return
    run, quiet = trained
    importlib.import_module("export.__main__").export_last(run, quiet=quiet)


if __name__ == "__main__":
    main()
