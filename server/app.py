"""The application: what lives as long as it does, how errors become answers, and which routes there are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cascade import bundle
from cascade.errors import CascadeError
from server.engine import Engine
from server.logs import configure
from server.metrics import Metrics, shared_folder
from server.middleware import Observe, error_response
from server.predict import Predictor
from server.routes import router
from server.runtime import OnnxRuntime, Runtime
from server.scheduler import Limits
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

RETRY_AFTER_S = "1"
CLIENT_CLOSED_REQUEST = 499


class Service:
    """Everything that serves one bundle.

    Args:
        settings: limits.
        runtime: runs the networks.

    Attributes:
        failure: what ended the warm-up, if something did.
    """

    def __init__(self, settings: ServerSettings, runtime: Runtime) -> None:
        limits = Limits(settings.max_queue, settings.max_batch, settings.max_wait_ms / 1000)
        self.manifest_json = json.dumps(runtime.manifest.document()).encode()
        self.metrics = Metrics(len(runtime.manifest.stages), shared_folder())
        self.engine = Engine(runtime, limits, self.metrics)
        self.predictor = Predictor(settings, runtime.manifest, self.engine)
        self.failure: Exception | None = None
        self.warmed = asyncio.Event()

    async def warm_up(self) -> None:
        """Warm every stage, and note whether that worked."""
        try:
            await self.engine.warm_up()
        except Exception as error:
            logger.exception("warm-up failed")
            self.failure = error
        self.warmed.set()

    def close(self) -> None:
        """End every thread."""
        self.predictor.close()
        self.engine.close()


def open_runtime(settings: ServerSettings) -> Runtime:
    """Read and verify the bundle, and make its sessions.

    Raises:
        BundleError: the bundle is not what its manifest says.
        DeviceUnavailable: the device is not there.
    """
    return OnnxRuntime(bundle.read(settings.bundle), settings.device, settings.threads, settings.max_batch)


def create_app(settings: ServerSettings, runtime: Runtime | None = None) -> FastAPI:
    """Make the application.

    Args:
        settings: every knob.
        runtime: runs the networks; default the bundle of the settings on onnxruntime, opened at start-up.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = await asyncio.to_thread(open_runtime, settings) if runtime is None else runtime
        service = Service(settings, opened)
        app.state.service = service
        warming = asyncio.create_task(service.warm_up())
        try:
            yield
        finally:
            service.engine.drain()
            await warming
            service.close()

    app = FastAPI(
        title="rescade",
        description="Image classification by a cascade that spends compute only where a sample needs it.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(router)
    app.add_exception_handler(CascadeError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_middleware(Observe)
    return app


def from_environment() -> FastAPI:
    """Make the application from `RESCADE_` variables alone: `uvicorn --factory server.app:from_environment`."""
    settings = ServerSettings()
    configure(settings.log_level)
    return create_app(settings)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CascadeError), "registered for nothing else"
    request.scope["rescade"].fields["error"] = error.code
    headers = {"Retry-After": RETRY_AFTER_S} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return error_response(error.status, error.code, str(error), headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for nothing else"
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(404, "not_found", f"there is nothing at {path}: see /docs", headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.method} is not for {path}: use {headers.get('Allow', headers.get('allow'))}"
        return error_response(405, "method_not_allowed", message, headers)
    return error_response(error.status_code, "http_error", str(error.detail), headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    request.scope["rescade"].fields["error"] = "client_disconnected"
    return Response(status_code=CLIENT_CLOSED_REQUEST)
