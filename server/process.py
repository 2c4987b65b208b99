"""One server process: uvicorn around the application, and an orderly end.

uvicorn raises a signal again once it has shut down, for whoever had a handler before; with the default handlers that
would end a drained process as if it had been killed, so both signals have a handler of ours throughout.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from cascade.errors import CascadeError
from server import tls
from server.app import Application, Service, create_app
from server.connection import Connection
from server.gate import AdminPort
from server.heads import Heads
from server.library import Library
from server.port import ADMIN, HANG_UP, PUBLIC, SIGNALS
from server.runtime import Runtime
from server.settings import ServerSettings

TICK_S = 0.02
COLLECT_AFTER = 10_000  # objects made and not yet gone


class Process(uvicorn.Server):
    """Serves on a socket until it is told to stop.

    Args:
        app: as `create_app` makes it.
        settings: how long to drain.
        on_ready: called once the port is open and every stage is warm.
        admin: the open port for admins, if there is one.
    """

    def __init__(
        self,
        app: Application,
        settings: ServerSettings,
        on_ready: Callable[[], None],
        admin: socket.socket | None = None,
    ) -> None:
        http = "httptools" if app.direct is None else partial(Connection, app.direct, Heads())
        super().__init__(_config(app, settings, http))
        self._configs = {PUBLIC: self.config, ADMIN: _config(AdminPort(app), settings)}
        self._admin = admin
        self._app = app
        self._delay = settings.drain_delay_s
        self._on_ready = on_ready
        self._told_to_stop = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[None]] = set()

    @property
    def failure(self) -> Exception | None:
        """What ended the warm-up, if something did."""
        error: Exception | None = self._app.state.service.failure
        return error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application, then wait beside it until it is warm."""
        self._loop = asyncio.get_running_loop()
        told_early, self.should_exit = self.should_exit, False
        await super().startup(sockets)
        self._configs[ADMIN].load()
        if self._admin is not None:
            protocol = partial(self.protocol, ADMIN)
            self.servers.append(await self._loop.create_server(protocol, sock=self._admin, ssl=self.config.ssl))
        self._waiter = asyncio.create_task(self._announce())
        if told_early:
            self._loop.call_later(TICK_S, self.handle_exit, signal.SIGTERM, None)

    def protocol(self, kind: bytes) -> asyncio.BaseProtocol:
        """Make what serves one connection of a kind, as uvicorn does for those it accepts itself."""
        config = self._configs[kind]
        return config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def _announce(self) -> None:
        await self._app.state.service.warmed.wait()
        if self.failure is not None:
            self.should_exit = True
        elif not self.should_exit:
            _spare_collector()
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the gRPC port at once, so that both ports drain side by side."""
        self._app.state.service.rpc.begin_close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn not ready; stop at once, or after the delay that lets load balancers notice. A second signal stops.

        A signal during the start is put off until the start is over: some releases of uvicorn would otherwise leave
        without shutting the application down.
        """
        service: Service | None = getattr(self._app.state, "service", None)  # none before the start, none to drain
        if service is not None:
            service.drain()
        delay = 0.0 if self._told_to_stop else self._delay
        self._told_to_stop = True
        if self._loop is not None and self._loop.is_running() and (delay or not self.started):
            again = partial(self.handle_exit, sig, frame)
            self._loop.call_soon_threadsafe(self._loop.call_later, max(delay, TICK_S), again)
        else:
            super().handle_exit(sig, frame)

    def hang_up(self, sig: int, frame: FrameType | None) -> None:
        """Look at the disk for bundles that are new or changed."""
        if self.started and self._loop is not None:
            self._loop.call_soon_threadsafe(self._reload_soon)

    def _reload_soon(self) -> None:
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        with contextlib.suppress(CascadeError):  # the log says what
            await self._app.state.service.control.reload()


def _spare_collector() -> None:
    """Have the garbage collector pass over what stays until the end, and look for the rest less often.

    A request leaves no cycles behind, so there is little to find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def _config(app: Any, settings: ServerSettings, http: Any = "httptools") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=http,
        log_config=None,
        access_log=False,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        **tls.options(settings),
    )


def serve(
    settings: ServerSettings,
    runtimes: Sequence[Runtime],
    ports: Mapping[bytes, socket.socket],
    on_ready: Callable[[], None],
    library: Library | None = None,
) -> Exception | None:
    """Serve until a signal comes, and answer what is in hand before returning.

    Args:
        settings: every knob.
        runtimes: run the networks.
        ports: open, by the kind of their connections.
        on_ready: called once every stage is warm.
        library: where the runtimes' bundles came from.

    Returns:
        What ended the warm-up, if something did.
    """
    app = create_app(settings, *runtimes, library=library)
    return run(Process(app, settings, on_ready, ports.get(ADMIN)), [ports[PUBLIC]])


def run(process: Process, sockets: list[socket.socket]) -> Exception | None:
    """Run a process on some sockets, with handlers of ours for its signals.

    Returns:
        What ended the warm-up, if something did.
    """
    handlers = {**dict.fromkeys(SIGNALS, process.handle_exit), **dict.fromkeys(HANG_UP, process.hang_up)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        process.run(sockets)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return process.failure
