"""The gRPC port of one process. Workers share it: the kernel gives each new connection to one of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc
import grpc.aio

from cascade.errors import ServiceError
from server.oip.ports import Models
from server.rpc.calls import Desk
from server.rpc.health import Health
from server.rpc.messages import HEALTH, INFERENCE
from server.rpc.port import Check, Meter, let_in
from server.rpc.service import Service
from server.settings import ServerSettings
from server.tracing import Silence, Tracer

logger = logging.getLogger(__name__)


class Listener:
    """Serves calls from `open` to `close`.

    Args:
        settings: address, limits, certificates, and how long to wait at the end.
        models: that are served.
        meter: counts calls.
        check: looks at the metadata of every call but those of probes.
        tracer: told of calls.

    Attributes:
        port: that is open; 0 before that.
    """

    def __init__(
        self,
        settings: ServerSettings,
        models: Models,
        meter: Meter,
        check: Check = let_in,
        tracer: Tracer | None = None,
    ) -> None:
        assert settings.grpc_port is not None, "made for a port"
        self.port = 0
        self._settings = settings
        self._health = Health(lambda: models.ready)
        self._desk, self._answers = Desk(meter, tracer or Silence()), Service(models, check).answers()
        self._server: grpc.aio.Server | None = None
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the port.

        Raises:
            ServiceError: it is taken, or the address is not ours, or a certificate cannot be read.
        """
        settings = self._settings
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(settings.workers > 1)),
            )
        )
        server.add_generic_rpc_handlers(self._handlers())
        credentials = await asyncio.to_thread(credentials_of, settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if credentials is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ServiceError(f"cannot listen for gRPC on {address}: the port is taken, or not ours") from error
        await server.start()
        self._server = server
        logger.info("gRPC", extra={"fields": {"host": settings.host, "port": self.port}})

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        answers = {name: self._desk.handler(f"/{INFERENCE}/{name}", answer) for name, answer in self._answers.items()}
        return (
            grpc.method_handlers_generic_handler(INFERENCE, answers),
            grpc.method_handlers_generic_handler(HEALTH, self._health.handlers()),
        )

    def begin_close(self) -> None:
        """Take no new calls from now on; those in hand go on."""
        self._health.end()
        if self._server is not None and self._closing is None:
            self._closing = asyncio.create_task(self._server.stop(self._settings.drain_timeout_s))

    async def close(self) -> None:
        """Wait for the calls in hand, as long as the settings allow, and end the rest."""
        self.begin_close()
        if self._closing is not None:
            await self._closing


def credentials_of(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """What TLS needs, if the settings ask for it; with an authority, clients have to show a certificate of it.

    Args:
        settings: `tls_cert`, `tls_key` and `tls_ca`, as far as there are such settings.

    Raises:
        ServiceError: a file cannot be read.
    """
    cert, key, authority = (getattr(settings, name, None) for name in ("tls_cert", "tls_key", "tls_ca"))
    if cert is None or key is None:
        return None
    try:
        pair = (Path(key).read_bytes(), Path(cert).read_bytes())
        root = None if authority is None else Path(authority).read_bytes()
    except OSError as error:
        raise ServiceError(f"cannot read the certificate for gRPC: {error}") from error
    return grpc.ssl_server_credentials([pair], root, require_client_auth=root is not None)
