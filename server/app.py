"""The application: what lives as long as it does, how errors become answers, and which routes there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from cascade.bundle import Bundle
from cascade.errors import CascadeError
from server.library import Library
from server.logs import configure
from server.metrics import Metrics, shared_folder
from server.middleware import CLIENT_CLOSED_REQUEST, Observe, Reply, error_reply, failure
from server.models import Model, Models
from server.predict import Predictor
from server.routes import PREDICT_PATHS, router
from server.runtime import OnnxRuntime, Runtime
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

FLUSH_S = 0.05


class Service:
    """Everything that serves some models.

    Args:
        settings: limits.
        runtimes: run the models' networks; the first is asked where no name is.

    Attributes:
        failure: what ended the warm-up, if something did.
    """

    def __init__(self, settings: ServerSettings, runtimes: Sequence[Runtime]) -> None:
        self.metrics = Metrics(shared_folder(), _soon)
        self.models = Models([Model(settings, runtime, self.metrics) for runtime in runtimes])
        self.predictor = Predictor(settings, self.models)
        self.failure: Exception | None = None
        self.warmed = asyncio.Event()
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether every stage of every model is warm and no drain has begun."""
        models = self.models.all()
        return not self._draining and bool(models) and all(model.engine.ready for model in models)

    def drain(self) -> None:
        """Turn not ready; what is in hand, and what still arrives, is answered."""
        self._draining = True

    async def warm_up(self) -> None:
        """Warm every stage, and note whether that worked."""
        try:
            for model in self.models.all():
                await model.engine.warm_up()
        except Exception as error:
            logger.exception("warm-up failed")
            self.failure = error
        self.warmed.set()

    def close(self) -> None:
        """End every thread."""
        self.predictor.close()
        for model in self.models.all():
            model.engine.close()
        self.metrics.flush()


def _soon(flush: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(FLUSH_S, flush)


def open_runtime(settings: ServerSettings, bundle: Bundle) -> Runtime:
    """Make a bundle's sessions.

    Raises:
        BundleError: the bundle's networks are not what its manifest says.
        DeviceUnavailable: the device is not there.
    """
    return OnnxRuntime(bundle, settings.device, settings.threads, settings.max_batch)


def open_runtimes(settings: ServerSettings) -> tuple[Runtime, ...]:
    """Read and verify every bundle, and make their sessions.

    Raises:
        BundleError: a bundle is not what its manifest says, or two have the same name and version.
        DeviceUnavailable: the device is not there.
    """
    return tuple(open_runtime(settings, bundle) for bundle in Library(settings.bundle).open())


def create_app(settings: ServerSettings, *runtimes: Runtime) -> FastAPI:
    """Make the application.

    Args:
        settings: every knob.
        runtimes: run the networks; default the bundles of the settings on onnxruntime, opened at start-up.
    """

    async def predict(scope: Scope, receive: Receive) -> Reply:
        service: Service = app.state.service
        chosen = scope.get("path_params", {})
        return await service.predictor.answer(scope, receive, chosen.get("name"), chosen.get("version"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = runtimes or await asyncio.to_thread(open_runtimes, settings)
        service = Service(settings, opened)
        app.state.service = service
        warming = asyncio.create_task(service.warm_up())
        try:
            yield
        finally:
            service.drain()
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
    app.add_middleware(Observe, handlers=dict.fromkeys(PREDICT_PATHS, predict))
    return app


def from_environment() -> FastAPI:
    """Make the application from `RESCADE_` variables alone: `uvicorn --factory server.app:from_environment`."""
    settings = ServerSettings()
    configure(settings.log_level)
    return create_app(settings)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CascadeError), "registered for nothing else"
    request.scope["rescade"].fields["error"] = error.code
    return error_reply(error).response()


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for nothing else"
    path, headers = request.url.path, dict(error.headers or {})
    code, message = "http_error", str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        code, message = "not_found", f"there is nothing at {path}: see /docs"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        code = "method_not_allowed"
        message = f"{request.method} is not for {path}: use {headers.get('Allow', headers.get('allow'))}"
    response = failure(error.status_code, code, message).response()
    response.headers.update(headers)
    return response


async def _answer_nobody(request: Request, error: Exception) -> Response:
    request.scope["rescade"].fields["error"] = "client_disconnected"
    return Response(status_code=CLIENT_CLOSED_REQUEST)
