"""The command line: `rescade serve BUNDLE...`, or `python -m server BUNDLE...`.

Every setting is an option, and an environment variable of the same name under `RESCADE_`; an option wins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from pydantic import ValidationError

from cascade.errors import CascadeError
from server.logs import configure
from server.settings import PREFIX, ServerSettings


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, field in reversed(ServerSettings.model_fields.items()):
        default = "" if field.is_required() or field.default in (None, ()) else f" [default: {field.default}]"
        if name == "bundle":
            command = click.argument(name, nargs=-1)(command)
        elif field.annotation is bool:
            flag = name.replace("_", "-")
            command = click.option(f"--{flag}/--no-{flag}", name, default=None, help=field.description)(command)
        else:
            text = f"{field.description}{default}"
            command = click.option(f"--{name.replace('_', '-')}", name, metavar="VALUE", help=text)(command)
    return command


@click.command("serve")
@_with_options
def serve(**given: Any) -> None:
    """Serve cascades over HTTP: each BUNDLE is a folder of one, or a folder of such folders."""
    settings = read_settings({name: value for name, value in given.items() if value not in (None, ())})
    configure(settings.log_level)
    try:
        failure = run(settings)
    except (CascadeError, OSError) as error:
        failure = str(error)
    if failure is not None:
        click.echo(f"rescade: cannot serve {_named(settings)}: {' '.join(failure.split())}", err=True)
        sys.exit(1)


def read_settings(given: dict[str, Any]) -> ServerSettings:
    """Settings from options and the environment.

    Raises:
        click.UsageError: one of them is missing or wrong.
    """
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        option = "BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}"
        where = f"{option} ({PREFIX}{name.upper()}): " if name else ""
        raise click.UsageError(f"{where}{first['msg']}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def run(settings: ServerSettings) -> str | None:
    """Serve until a signal comes, with one process or with several.

    Returns:
        Why it could not go on, or None.

    Raises:
        CascadeError: a bundle or the device cannot be used.
        OSError: the port cannot be opened.
    """
    # Imported here so that a wrong option is answered at once, and a parent of workers stays light.
    from server import tls
    from server.library import library_of
    from server.port import ADMIN, PUBLIC, listening, url_of

    def announce() -> None:
        scheme = "http" if settings.tls_cert is None else "https"
        click.echo(f"rescade serves {_named(settings)} at {url_of(ports[PUBLIC], scheme)}")
        if ADMIN in ports:
            click.echo(f"rescade is managed at {url_of(ports[ADMIN], scheme)}")

    tls.check(settings)
    library = library_of(settings)
    if settings.workers > 1:
        from server.rpc.port import check_free
        from server.workers import supervise

        check_free(settings)
        library.open()
        with listening(settings) as ports:
            return supervise(settings, ports, library, announce)
    from server.app import open_runtimes
    from server.process import serve as serve_here

    runtimes = open_runtimes(settings, library)
    with listening(settings) as ports:
        failure = serve_here(settings, runtimes, ports, announce, library)
    return None if failure is None else str(failure)


def _named(settings: ServerSettings) -> str:
    return " ".join(map(str, settings.bundle))


if __name__ == "__main__":
    serve(prog_name="rescade serve")
