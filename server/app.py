"""The application: what lives as long as it does, how errors become answers, and which routes there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from cascade.bundle import Bundle
from cascade.errors import CascadeError
from server import admin
from server.control import Control, Coordinator
from server.direct import Direct
from server.gate import Gate
from server.intake import Intake
from server.journal import Journal
from server.library import Library, library_of
from server.logs import configure
from server.metrics import Metrics, shared_folder
from server.middleware import Observe
from server.models import Model, Models
from server.oip.routes import router as oip
from server.predict import Predictor
from server.protocol import Protocol
from server.providers import Place
from server.replies import CLIENT_CLOSED_REQUEST, Reply, error_reply, failure, unforeseen
from server.routes import PREDICT_PATHS, router
from server.rpc.port import check_installed, port_of
from server.runtime import OnnxRuntime, Runtime
from server.settings import ServerSettings
from server.stock import Stock
from server.tracing import Tracer, open_tracer

logger = logging.getLogger(__name__)

FLUSH_S = 0.05
ADMIN_REQUESTS, ADMIN_BYTES = 16, 65536  # beside the limits for everybody else, so that a full house can be managed


class Service:
    """Everything that serves some models.

    Args:
        settings: limits.
        library: where the models came from.
        runtimes: run the models' networks; the first is asked where no name is.
        tracer: told of calls over gRPC; default nobody.

    Attributes:
        control: changes what is served; a worker puts one here that asks its parent.
        admin_intake: lets in what those who run the server ask.
        failure: what ended the warm-up, if something did.
    """

    def __init__(
        self, settings: ServerSettings, library: Library, runtimes: Sequence[Runtime], tracer: Tracer | None = None
    ) -> None:
        self.metrics = Metrics(shared_folder(), _soon)
        make = partial(Model, settings, metrics=self.metrics)
        self.models = Models([make(runtime) for runtime in runtimes])
        self.stock = Stock(self.models, partial(open_runtime, settings), make)
        coordinator = Coordinator(library, settings.reload_timeout_s, [self.stock])
        self.control = Control(coordinator.carry_out, self.models.is_warm)
        self.predictor = Predictor(settings, self.models)
        gate = Gate(settings)
        self.protocol = Protocol(settings, self, gate)
        check = gate.check_headers
        self.rpc = port_of(settings, self.protocol, self.metrics, check, tracer)  # type: ignore[arg-type]  # it takes its own models
        self.admin_intake = Intake(
            ADMIN_REQUESTS, ADMIN_BYTES, ADMIN_REQUESTS * ADMIN_BYTES, settings.request_timeout_s
        )
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
            await self.rpc.open()
            for model in self.models.all():
                await model.engine.warm_up()
        except CascadeError as error:
            logger.error("warm-up failed", extra={"fields": {"reason": str(error)}})
            self.failure = error
        except Exception as error:
            logger.exception("warm-up failed")
            self.failure = error
        self.warmed.set()

    def close(self) -> None:
        """End every thread."""
        self.predictor.close()
        self.stock.close()
        for model in self.models.all():
            model.engine.close()
        self.metrics.flush()


def _soon(flush: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(FLUSH_S, flush)


class Application(FastAPI):
    """FastAPI with something in front of it.

    Middleware added the usual way stands behind what the framework does for every request, which takes as long as a
    light network; this stands before it.

    Attributes:
        front: sees requests first; hands to `framework` what it does not answer.
        direct: answers light questions, for connections that ask it; None where every request is to be traced.
        service: there from the start of its life to the end.
    """

    front: ASGIApp
    direct: Direct | None
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.front(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as FastAPI does."""
        await super().__call__(scope, receive, send)


def open_runtime(settings: ServerSettings, bundle: Bundle) -> Runtime:
    """Make a bundle's sessions.

    Raises:
        BundleError: the bundle's networks are not what its manifest says, or golden samples are to be run, and it has
            none.
        DeviceUnavailable: the device is not there.
    """
    place = Place.of(
        settings.device,
        threads=settings.threads,
        cuda_graphs=settings.cuda_graphs,
        tensorrt_cache=None if settings.tensorrt_cache is None else str(settings.tensorrt_cache),
    )
    return OnnxRuntime(bundle, place, settings.max_batch, self_test=settings.self_test)


def open_runtimes(settings: ServerSettings, library: Library) -> tuple[Runtime, ...]:
    """Read and verify every bundle, and make their sessions.

    Raises:
        BundleError: a bundle is not what its manifest says, nobody trusted signed it, or two have the same name and
            version.
        DeviceUnavailable: the device is not there.
    """
    return tuple(open_runtime(settings, bundle) for bundle in library.open(settings.profile))


def create_app(
    settings: ServerSettings, *runtimes: Runtime, library: Library | None = None, tracer: Tracer | None = None
) -> Application:
    """Make the application.

    Args:
        settings: every knob.
        runtimes: run the networks; default the bundles of the settings on onnxruntime, opened at start-up.
        library: where the runtimes' bundles came from; with it alone the application starts without any.
        tracer: told of requests; default whom the settings name.

    Raises:
        ServiceError: requests are to be traced, or there is to be a gRPC port, and what that needs is not installed.
        BadKey: bundles are to be signed, and a trusted key cannot be read.
    """
    check_installed(settings)
    told = open_tracer(settings.otel_endpoint, settings.otel_sample_ratio) if tracer is None else tracer
    books = library_of(settings) if library is None else library

    async def predict(scope: Scope, receive: Receive) -> Reply:
        service: Service = app.state.service
        chosen = scope.get("path_params", {})
        return await service.predictor.answer(scope, receive, chosen.get("name"), chosen.get("version"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        from_disk = library is None and not runtimes
        opened = await asyncio.to_thread(open_runtimes, settings, books) if from_disk else runtimes
        service = Service(settings, books, opened, told)
        app.service = app.state.service = service
        app.state.oip = service.protocol
        warming = asyncio.create_task(service.warm_up())
        try:
            yield
        finally:
            service.drain()
            await warming
            await service.rpc.close()
            service.close()
            await asyncio.to_thread(told.close)

    app = Application(
        title="rescade",
        description="Image classification by a cascade that spends compute only where a sample needs it.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(router)
    app.include_router(oip)
    app.add_exception_handler(CascadeError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_unforeseen)
    if settings.admin_key_sha256 is not None or settings.admin_port is not None:
        app.include_router(admin.router)
    handlers = dict.fromkeys(PREDICT_PATHS, predict)
    journal, check = Journal(lambda: app.service.metrics), Gate(settings).check
    app.front = Observe(app.framework, journal, handlers, check, told)
    app.direct = None if told.on else Direct(lambda: app.service.predictor, journal, check, settings.max_body_bytes)
    return app


def from_environment() -> Application:
    """Make the application from `RESCADE_` variables alone: `uvicorn --factory server.app:from_environment`."""
    settings = ServerSettings()
    configure(settings.log_level)
    return create_app(settings)


async def _answer_unforeseen(request: Request, error: Exception) -> Response:
    return unforeseen().response()


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
