"""The port that a server listens on, and the signals that end it. Light, so that a parent of workers stays light."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from server.settings import ServerSettings

SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANG_UP = tuple(number for number in signal.Signals if number.name == "SIGHUP")  # empty where there is no such signal

PUBLIC, ADMIN = b"p", b"a"  # the kinds of connections: to the port that everybody asks, and to the one for admins


def listen(host: str, port: int) -> socket.socket:
    """Open a port.

    Raises:
        OSError: it is taken, or the address is not ours.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


@contextmanager
def listening(settings: ServerSettings) -> Iterator[dict[bytes, socket.socket]]:
    """Open every port that the settings name, by the kind of its connections.

    Raises:
        OSError: one is taken, or the address is not ours.
    """
    with ExitStack() as stack:
        ports = {PUBLIC: stack.enter_context(listen(settings.host, settings.port))}
        if settings.admin_port is not None:
            ports[ADMIN] = stack.enter_context(listen(settings.admin_host, settings.admin_port))
        yield ports


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The address that a listening socket answers at."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
