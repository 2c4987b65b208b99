"""The port that a server listens on, and the signals that end it. Light, so that a parent of workers stays light."""

from __future__ import annotations

import signal
import socket

from server.settings import ServerSettings

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def listen(settings: ServerSettings) -> socket.socket:
    """Open the port.

    Raises:
        OSError: it is taken, or the address is not ours.
    """
    family, _, _, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def url_of(listener: socket.socket) -> str:
    """The address that a listening socket answers at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
