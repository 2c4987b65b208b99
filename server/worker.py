"""One of several server processes: it gets its connections and its models from the parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType

from server import cores
from server.app import Application, Service, create_app
from server.commands import Leaving, Up
from server.control import Control
from server.door import Place
from server.library import Library
from server.line import Line, Lost
from server.logs import configure
from server.port import HANG_UP
from server.process import Process, run
from server.settings import ServerSettings
from server.taker import Taker

logger = logging.getLogger(__name__)

LAST_CALL_S = 5.0  # for the parent to hand over what it had accepted
SETTLE_S = 0.1  # for the requests on connections that were handed over last to be read


class Worker(Process):
    """Serves the connections that it is given, until it is told to stop.

    Args:
        app: as `create_app` makes it, without models.
        settings: how long to drain.
        place: the way to the parent.
    """

    def __init__(self, app: Application, settings: ServerSettings, place: Place) -> None:
        super().__init__(app, settings, self._up)
        self._place = place
        self._leaving = False
        self._saying: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application, then do what the parent says beside it."""
        await super().startup([])
        service: Service = self._app.state.service
        self._line = Line(self._place.pipe, service.stock.carry_out, self._orphaned)
        service.control = Control(self._line.call, service.models.is_warm)
        self._taker = Taker(self._place.channel, self._place.counts, self._serve_connection)
        self.server_state.connections = self._taker.connections

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what the parent had accepted, then end."""
        self._leaving = True
        with contextlib.suppress(TimeoutError, Lost):
            async with asyncio.timeout(LAST_CALL_S):
                await self._line.call(Leaving())
                await self._taker.finished.wait()
        await asyncio.sleep(SETTLE_S)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave Ctrl-C, which reaches every process of a terminal, to the parent."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    def hang_up(self, sig: int, frame: FrameType | None) -> None:
        """Leave that to the parent too."""

    def _up(self) -> None:
        if self._place.core is not None:
            cores.keep_to(self._place.core)
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=cores.roam))
        self._saying = asyncio.create_task(self._say_up())

    async def _say_up(self) -> None:
        with contextlib.suppress(Lost):
            await self._line.call(Up())

    def _orphaned(self) -> None:
        """Drain once the parent is gone, however it went: nobody would replace or end this worker any more."""
        if not self._leaving:
            os.kill(os.getpid(), signal.SIGTERM)

    async def _serve_connection(self, kind: bytes, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(partial(self.protocol, kind), connection, ssl=self.config.ssl)
        except OSError as error:  # a client that hung up, or does not speak TLS
            connection.close()
            logger.debug("connection failed", extra={"fields": {"reason": str(error)}})


def work(settings: ServerSettings, place: Place) -> None:
    """Be a worker, until the parent ends it or is gone."""
    configure(settings.log_level)
    for number in HANG_UP:
        signal.signal(number, signal.SIG_IGN)  # it is the parent's to hear
    run(Worker(create_app(settings, library=Library(())), settings, place), [])
