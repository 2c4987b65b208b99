"""`rescade profile`: what networks take, side by side; of bundles, of runs, or fresh ones by name."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import onnx
from rich.console import Console
from rich.table import Table

from cascade import bundle
from cascade.errors import CascadeError
from export.parts import load
from export.pixel_input import bare, taking
from export.profile import Profile, profile
from export.timing import latencies


@dataclass(frozen=True)
class Network:
    """One network as an ONNX file.

    Attributes:
        name: for the table.
        model: the file's bytes, of the network alone.
        size: pixels a side of its input.
    """

    name: str
    model: bytes
    size: int


@dataclass(frozen=True)
class Measured:
    """A network with its figures; `seconds` of one run by batch size, empty where none were asked for."""

    name: str
    profile: Profile
    seconds: dict[int, float]

    def figures(self) -> dict[str, float]:
        """What the table compares, by the words it uses."""
        found = self.profile
        return {
            "parameters": found.params,
            "weights, bytes": found.weight_bytes,
            "MACs": found.macs,
            "peak activations, bytes": found.peak_bytes,
            "the same, ReLU in place": found.peak_in_place_bytes,
            "FLOPs a byte moved": found.flops / max(1, found.moved_bytes),
            **{f"ms at batch {batch}": seconds * 1000 for batch, seconds in self.seconds.items()},
        }

    def document(self) -> dict[str, Any]:
        """The same and every layer, as plain JSON values."""
        found = self.profile
        return {
            "name": self.name,
            "parameters": found.params,
            "weight_bytes": found.weight_bytes,
            "macs": found.macs,
            "flops": found.flops,
            "moved_bytes": found.moved_bytes,
            "peak_bytes": found.peak_bytes,
            "peak_in_place_bytes": found.peak_in_place_bytes,
            "seconds_by_batch": {str(batch): seconds for batch, seconds in self.seconds.items()},
            "layers": [{**asdict(layer), "intensity": layer.intensity} for layer in found.layers],
        }


def networks(source: str, size: int, classes: int) -> list[Network]:
    """The networks that a word of the command line means.

    Args:
        source: folder of a bundle, folder of a run, or name of an architecture.
        size: pixels a side, for an architecture.
        classes: K, for an architecture.

    Raises:
        CascadeError: the bundle or the run is broken, or nothing has that name.
    """
    folder = Path(source)
    if (folder / bundle.MANIFEST).is_file():
        read = bundle.read(folder)
        side = read.manifest.preprocess.size
        models = [bare(load(model, source)).SerializeToString() for model in taking(read, "float32").models]
        return [Network(f"{source} stage {stage}", model, side) for stage, model in enumerate(models)]
    from export.to_onnx import to_onnx

    if (folder / "recipe.json").is_file():
        from training.run import open_run

        run = open_run(folder)
        side = run.recipe.data.rule().size
        teacher = run.teacher()
        steps = [*([teacher] if teacher else []), *run.stages()]
        return [Network(f"{source} {step}", to_onnx(run.network(step)[1], side), side) for step in steps]
    from training.models import build

    return [Network(source, to_onnx(build(source, classes), size), size)]


def measure(found: Sequence[Network], batches: Sequence[int], rounds: int) -> list[Measured]:
    """Walk every graph, and time it at these batch sizes, if there are any.

    Raises:
        BundleError: a graph cannot be walked or run.
    """
    profiles = [profile(onnx.load_model_from_string(network.model)) for network in found]
    models, sizes = [network.model for network in found], [network.size for network in found]
    times = latencies(models, sizes, batches, rounds) if batches else [[] for _ in found]
    return [
        Measured(network.name, each, dict(zip(batches, seconds, strict=True)))
        for network, each, seconds in zip(found, profiles, times, strict=True)
    ]


def comparison(found: Sequence[Measured]) -> Table:
    """A row a figure, a column a network, and a column with the ratio to the first network for every other one."""
    table = Table("for one image", title="profile", title_justify="left")
    for place, each in enumerate(found):
        table.add_column(each.name, justify="right")
        if place:
            table.add_column("ratio", justify="right")
    figures = [each.figures() for each in found]
    for name, base in figures[0].items():
        cells = [_number(base)]
        for other in figures[1:]:
            cells += [_number(other[name]), f"{other[name] / base:.3g}" if base else "-"]
        table.add_row(name, *cells)
    return table


def layers(found: Measured) -> Table:
    """A row a layer of one network."""
    head = ("layer", "kind", "MACs", "weights, bytes", "moved, bytes", "FLOPs a byte", "live, bytes", "in place")
    table = Table(*head, title=found.name, title_justify="left")
    table.columns[0].overflow = "fold"
    for layer in found.profile.layers:
        counts = (layer.macs, layer.weight_bytes, layer.moved_bytes)
        intensity = "-" if layer.intensity is None else f"{layer.intensity:.2f}"
        live = (f"{layer.live_bytes:,}", f"{layer.live_in_place_bytes:,}")
        table.add_row(layer.name, layer.kind, *(f"{count:,}" for count in counts), intensity, *live)
    return table


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _batches(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter("must be whole numbers, separated by commas, like 1,8") from error
    if min(sizes) < 1:
        raise click.BadParameter("must be 1 or more")
    return sizes


@click.command("profile")
@click.argument("sources", nargs=-1, required=True, metavar="BUNDLE|RUN|NETWORK...")
@click.option("--size", default=32, show_default=True, type=click.IntRange(1), help="Pixels a side, for a NETWORK.")
@click.option("--classes", default=10, show_default=True, type=click.IntRange(2), help="Classes, for a NETWORK.")
@click.option("--batch", "batches", default="1,8,32", show_default=True, callback=_batches, help="Batch sizes to time.")
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(1), help="Timed runs of each.")
@click.option("--no-time", is_flag=True, help="Leave timing out.")
@click.option("--layers", "by_layer", is_flag=True, help="Also a table of every network's layers.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def profile_command(
    sources: tuple[str, ...],
    size: int,
    classes: int,
    batches: tuple[int, ...],
    rounds: int,
    *,
    no_time: bool,
    by_layer: bool,
    as_json: bool,
) -> None:
    """Say what networks take: parameters, MACs, memory, and time on one thread of this CPU, side by side."""
    try:
        found = [network for source in sources for network in networks(source, size, classes)]
        measured = measure(found, () if no_time else batches, rounds)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        machine = {"system": platform.platform(), "processor": platform.machine()}
        click.echo(json.dumps({"machine": machine, "networks": [each.document() for each in measured]}, indent=2))
        return
    console = Console()
    console.print(comparison(measured))
    for each in measured if by_layer else ():
        console.print(layers(each))
