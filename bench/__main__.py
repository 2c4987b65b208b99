"""The command: `rescade bench URL --images DIR`, also `python -m bench URL --images DIR`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import address, images, interrupt, plot, progress, table
from bench.errors import AskedWrongly, BenchError
from bench.plan import MAX_CONNECTIONS, OWN, Load, Variation, check, comparison
from bench.report import Document, Images, latencies_s
from bench.session import Session

DEFAULT_CONCURRENCY = 8
DEFAULT_CONNECTIONS = 64
DEFAULT_WARMUP = 20
WIDE = 200


def _whole_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Read a list like `1,4,16`."""
    one = click.IntRange(1, MAX_CONNECTIONS)
    return tuple(one(item.strip(), param, ctx) for item in value.split(",")) if value else ()


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("url")
@click.option(
    "--images",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images: flat, or one folder a class (then accuracy is reported).",
)
@click.option(
    "--concurrency",
    metavar="N[,N...]",
    callback=_whole_numbers,
    help="Closed loop: requests in flight; a list makes a run of each.  [8]",
)
@click.option("--rate", type=click.FloatRange(0, 1e6, min_open=True), help="Open loop: mean requests a second.")
@click.option("--arrivals", type=click.Choice(["constant", "poisson"]), help="Open loop: their spacing.  [poisson]")
@click.option("--connections", type=click.IntRange(1, MAX_CONNECTIONS), help="Open loop: most in flight.  [64]")
@click.option("--requests", type=click.IntRange(1, 10_000_000), help="How many.  [every image once]")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="For how long, seconds.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the images' order and Poisson arrivals.  [0]")
@click.option("--warmup", type=click.IntRange(0), help="Requests before, not counted.  [20, or 2 a worker]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=30.0, help="Of a request, seconds.  [30]")
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    help="Milliseconds that each request gives the server for its answer.  [none]",
)
@click.option("--threshold", type=float, help="Energy to be exceeded at an exit.  [the server's own]")
@click.option("--max-stage", type=click.IntRange(0), help="Last stage that may run; 0 is S0 alone.  [all]")
@click.option(
    "--compare",
    metavar="threshold=T[,T...]",
    help=f"Run S0 alone, the adaptive cascade at each threshold T (a number, or `{OWN}` for the server's) and the full "
    "cascade, one after another.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write the report here; `-` is stdout, in place of the table.",
)
@click.option(
    "--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: a .png, .svg, .pdf."
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def bench_command(url: str, folder: Path, json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Put load on the server at URL with the images of a folder, and report latency, throughput, exits and accuracy.

    A closed loop (--concurrency) keeps so many requests in flight. An open loop (--rate) sends them at times of their
    own, and counts latency from the moment a request was meant to be sent.

    Exit codes: 0 done, 1 failed or interrupted, 2 asked wrongly.
    """
    try:
        _bench(url, folder, json_path, plot_path, options)
    except BenchError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code) from error


def _bench(url: str, folder: Path, json_path: Path | None, plot_path: Path | None, options: dict[str, Any]) -> None:
    err = Console(stderr=True, force_terminal=False if options["quiet"] else None)
    where = address.parse(url)
    _check_outputs(json_path, plot_path)
    variations = _variations(options)
    found = images.find(folder)
    plan = [(load, variation) for variation in variations for load in _loads(options, len(found))]
    samples = [images.read(item) for item in progress.reading(err, found, "reading images")]

    session = Session(where, samples)
    failure: BenchError | None = None
    try:
        if interrupt.run(session.measure(plan, functools.partial(progress.watching, err))):
            failure = BenchError("interrupted; what was measured until then is reported")
    except BenchError as error:
        failure = error

    for note in session.notes:
        click.echo(f"Note: {note}", err=True)
    reports = session.reports()
    if reports:
        size = sum(len(sample.body) for sample in samples)
        sent = Images(folder=str(folder), count=len(samples), bytes=size, classes=tuple(images.classes(samples)))
        _write(Document(url=str(where), images=sent, runs=tuple(reports)), session, json_path, plot_path)
    for report in reports:
        for kind, message in report.error_examples.items():
            click.echo(f"Note: {report.name}: {report.errors[kind]} failed, the first with: {message}", err=True)
    if failure is not None:
        raise failure
    if silent := [report.name for report in reports if not report.succeeded]:
        raise BenchError(f"every request failed: {', '.join(silent)}")


def _variations(options: dict[str, Any]) -> list[Variation]:
    threshold, max_stage = options["threshold"], options["max_stage"]
    if options["compare"] is None:
        return [Variation("cascade", threshold, max_stage)]
    if threshold is not None or max_stage is not None:
        raise AskedWrongly("--compare sets thresholds and stages itself: leave out --threshold and --max-stage")
    if len(options["concurrency"]) > 1:
        raise AskedWrongly("--compare takes one --concurrency")
    return comparison(options["compare"])


def _loads(options: dict[str, Any], image_count: int) -> list[Load]:
    requests, duration_s, rate = options["requests"], options["duration"], options["rate"]
    if requests is not None and duration_s is not None:
        raise AskedWrongly("give --requests or --duration, not both")
    if requests is None and duration_s is None:
        requests = image_count
    common = {
        "requests": requests,
        "duration_s": duration_s,
        "seed": options["seed"],
        "timeout_s": options["timeout"],
        "deadline_ms": options["deadline"],
    }
    warmup = options["warmup"]
    if rate is None:
        if options["arrivals"] is not None or options["connections"] is not None:
            raise AskedWrongly("--arrivals and --connections belong to an open loop: add --rate")
        loads = [
            Load(
                mode="closed", connections=n, warmup=max(DEFAULT_WARMUP, 2 * n) if warmup is None else warmup, **common
            )
            for n in options["concurrency"] or (DEFAULT_CONCURRENCY,)
        ]
        return [check(load) for load in loads]
    if options["concurrency"]:
        raise AskedWrongly("--concurrency makes a closed loop and --rate an open one: give one of them")
    load = Load(
        mode="open",
        connections=options["connections"] or DEFAULT_CONNECTIONS,
        rate_per_s=rate,
        arrivals=options["arrivals"] or "poisson",
        warmup=DEFAULT_WARMUP if warmup is None else warmup,
        **common,
    )
    return [check(load)]


def _check_outputs(json_path: Path | None, plot_path: Path | None) -> None:
    for path in (json_path, plot_path):
        if path is not None and not path.parent.is_dir():
            raise AskedWrongly(f"there is no folder {path.parent} to write {path.name} into")
    if plot_path is not None:
        if plot_path.suffix.lower() not in plot.SUFFIXES:
            raise AskedWrongly(f"--plot writes {', '.join(plot.SUFFIXES)}; {plot_path.name} is none of them")
        plot.require()


def _write(document: Document, session: Session, json_path: Path | None, plot_path: Path | None) -> None:
    text = document.model_dump_json(indent=2)
    on_stdout = str(json_path) == "-"
    if on_stdout:
        click.echo(text)
    elif json_path is not None:
        try:
            json_path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise BenchError(f"cannot write {json_path}: {error.strerror}") from error
    if not on_stdout:
        out = Console()
        out = out if out.is_terminal else Console(width=WIDE)
        out.print(table.heading(document), markup=False, highlight=False, soft_wrap=True)
        out.print(table.render(document))
    if plot_path is not None:
        measured = [latencies_s(run.recording.outcomes) for run in session.runs if run.recording.outcomes]
        plot.draw(document, measured, plot_path)


if __name__ == "__main__":
    bench_command()
