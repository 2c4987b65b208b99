"""Whether there is a gRPC port, and what has to hold before one is opened. Light: gRPC is loaded where it is used."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from starlette.datastructures import Headers

from cascade.errors import ServiceError
from server.settings import ServerSettings

if TYPE_CHECKING:
    from server.oip.ports import Models
    from server.tracing import Tracer

PACKAGES = ("grpc", "google.protobuf")
ADVICE = "pip install 'rescade[grpc]'"

Check = Callable[[Headers], None]
"""Looks at a call's metadata, names in lower case, and raises a CascadeError for a caller who may not call."""


class Port(Protocol):
    """A port that calls come to."""

    async def open(self) -> None:
        """Open it.

        Raises:
            ServiceError: it cannot be opened.
        """

    def begin_close(self) -> None:
        """Take no new calls from now on; those in hand go on."""

    async def close(self) -> None:
        """Wait for the calls in hand, as long as the settings allow."""


class NoPort:
    """What there is where no gRPC port is asked for."""

    async def open(self) -> None:
        """Do nothing."""

    def begin_close(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class Meter(Protocol):
    """Counts calls."""

    def arrived(self) -> None:
        """Count a call in."""

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a call out, by its path and the HTTP status that says the same as its code."""


def let_in(headers: Headers) -> None:
    """Let everybody call."""


def port_of(
    settings: ServerSettings, models: Models, meter: Meter, check: Check = let_in, tracer: Tracer | None = None
) -> Port:
    """The port that the settings ask for, not yet open.

    Args:
        settings: port, limits, and how long to wait at the end.
        models: that are served.
        meter: counts calls.
        check: raises what a call is refused with; default lets everybody call.
        tracer: told of calls; default nobody.
    """
    if settings.grpc_port is None:
        return NoPort()
    from server.rpc.listener import Listener

    return Listener(settings, models, meter, check, tracer)


def check_installed(settings: ServerSettings) -> None:
    """Refuse a gRPC port where gRPC is not installed.

    Raises:
        ServiceError: it is not.
    """
    if settings.grpc_port is not None and not all(map(_is_installed, PACKAGES)):
        raise ServiceError(f"grpc_port {settings.grpc_port} needs packages that are not installed: {ADVICE}")


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def check_free(settings: ServerSettings) -> None:
    """Refuse a port that somebody else has. Workers share theirs, so none of them would notice.

    Raises:
        OSError: it is taken.
        ServiceError: it needs packages that are not installed, or workers would each take a port of their own.
    """
    check_installed(settings)
    if settings.grpc_port is None:
        return
    if settings.grpc_port == 0:
        raise ServiceError("grpc_port 0 would be another port in each worker: name one")
    family, _, _, _, address = socket.getaddrinfo(settings.host, settings.grpc_port, type=socket.SOCK_STREAM)[0]
    socket.create_server(address[:2], family=family).close()
