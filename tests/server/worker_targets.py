"""What a worker may do to its parent, short of serving: each is started in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import time
from multiprocessing.connection import Connection

from server.settings import ServerSettings


def steady(settings: ServerSettings, listener: socket.socket, parent: Connection) -> None:
    """Get ready, and wait to be ended."""
    parent.send(None)
    signal.pause()


def unlucky(settings: ServerSettings, listener: socket.socket, parent: Connection) -> None:
    """Say why it cannot start."""
    parent.send("no luck today")


def mute(settings: ServerSettings, listener: socket.socket, parent: Connection) -> None:
    """End before it is ready, without a word."""
    os._exit(7)


def replaced(settings: ServerSettings, listener: socket.socket, parent: Connection) -> None:
    """Die once after getting ready; the second of them ends the parent."""
    parent.send(None)
    try:
        settings.bundle[0].mkdir()
    except FileExistsError:
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    os._exit(9)


def stubborn(settings: ServerSettings, listener: socket.socket, parent: Connection) -> None:
    """Get ready, and take no notice of being told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent.send(None)
    while True:
        time.sleep(60)
