"""Which address of the protocol answers what. No logic: each route asks one object one thing.

Every refusal under `/v2` has the protocol's shape, which is not the rest of the server's: `ProtocolRoute` writes those
raised within a route, and `Elsewhere`, which is tried last, those for wrong paths and wrong methods.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from cascade.errors import CascadeError
from server.logs import request_id
from server.oip import documents, infer, repository
from server.oip.errors import INTERNAL, error_body, error_headers
from server.oip.ports import Model, Models, Outcome

logger = logging.getLogger(__name__)

FLOAT_BYTES = 4

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class ProtocolRoute(APIRoute):
    """A route whose refusals have the protocol's shape, whatever goes wrong."""

    def get_route_handler(self) -> Handler:
        """Wrap the handler that FastAPI would use."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                raise
            except CascadeError as error:
                return refuse(request.scope, error.status, error.code, str(error))
            except HTTPException as error:
                return refuse(request.scope, error.status_code, "http_error", str(error.detail), error.headers)
            except Exception:
                logger.exception("unforeseen error")
                return refuse(request.scope, 500, "internal", INTERNAL)

        return answer


class Elsewhere:
    """Answers for whatever under `/v2` no route is for, as an ASGI application.

    Args:
        routes: those there are.
    """

    def __init__(self, routes: Sequence[APIRoute]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse: 405 where another method would do, 404 where none would."""
        path, method = scope["path"], scope["method"]
        matching = [route for route in self._routes if route.path_regex.match(path)]
        allowed = ", ".join(sorted({method for route in matching for method in route.methods or ()}))
        if allowed:
            message = f"{method} is not for {path}: use {allowed}"
            response = refuse(scope, 405, "method_not_allowed", message, {"Allow": allowed})
        else:
            response = refuse(scope, 404, "not_found", f"there is nothing at {path}: see /docs")
        await response(scope, receive, send)


def refuse(
    scope: Scope, status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """A refusal in the protocol's shape; its code goes into the request's line of the log.

    Args:
        scope: of the request.
        status: HTTP status.
        code: stable name for machines.
        message: what is wrong, where, and what to do.
        headers: beside those that belong to the status.
        more: members of the body beside the error.
    """
    if (record := scope.get("rescade")) is not None:
        record.fields["error"] = code
    body = error_body(message, code, request_id.get(), **more)
    return Response(body, status, {**error_headers(status), **(headers or {})}, "application/json")


router = APIRouter(route_class=ProtocolRoute, tags=["Open Inference Protocol"])

_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": "of the model"}
_VERSION = {**_NAME, "name": "version", "description": "of the model; the current one at the address without it"}
_FAILURE = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "a refusal; the text says what to do",
        "content": {"application/json": {"schema": _FAILURE}},
    }
}


def _route(method: str, *paths: str) -> Callable[[Endpoint], Endpoint]:
    """Register a route at each of these paths."""

    def register(endpoint: Endpoint) -> Endpoint:
        for path in paths:
            named = [known for known in (_NAME, _VERSION) if f"{{{known['name']}}}" in path]
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                response_class=Response,
                responses=_REFUSED,
                openapi_extra={"parameters": named} if named else None,
            )
        return endpoint

    return register


def _model_route(method: str, rest: str = "") -> Callable[[Endpoint], Endpoint]:
    """Register a route of a model, with and without a version in its path."""
    return _route(method, f"/v2/models/{{name}}{rest}", f"/v2/models/{{name}}/versions/{{version}}{rest}")


def _models(request: Request) -> Models:
    models: Models = request.app.state.oip
    return models


def _model(request: Request) -> Model:
    return _models(request).get(request.path_params["name"], request.path_params.get("version"))


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


@_route("GET", "/v2", "/v2/")
async def server_metadata(request: Request) -> Response:
    """Say what the server is and which extensions it has."""
    return _json(documents.server_metadata(_models(request).server_version))


@_route("GET", "/v2/health/live")
async def live() -> Response:
    """Say that the process answers at all."""
    return _json({"live": True})


@_route("GET", "/v2/health/ready")
async def ready(request: Request) -> Response:
    """Say whether every required model can answer."""
    if not _models(request).ready:
        return _not_ready(request, "the server is not ready: its models are warming up, or it is about to stop")
    return _json({"ready": True, "live": True})


def _not_ready(request: Request, message: str) -> Response:
    return refuse(request.scope, 503, "not_ready", message, ready=False)


@_route("GET", "/v2/models")
async def model_list(request: Request) -> Response:
    """Name the models."""
    return _json(documents.model_list(model.name for model in _models(request).all()))


@_route("GET", "/v2/models/stats")
async def all_statistics(request: Request) -> Response:
    """Count what every model did, and every stage of it."""
    return _json(documents.statistics(_models(request).statistics(), stages=True))


@_model_route("GET")
async def model_metadata(request: Request) -> Response:
    """Say what a model takes and gives."""
    model = _model(request)
    versions = [other.version for other in _models(request).all() if other.name == model.name]
    return _json(documents.model_metadata(model.name, versions, model.manifest))


@_model_route("GET", "/ready")
async def model_ready(request: Request) -> Response:
    """Say whether a model can answer."""
    model = _model(request)
    if not model.ready:
        return _not_ready(request, f"model {model.name!r} version {model.version!r} is not ready: try again later")
    return _json({"name": model.name, "ready": True})


@_model_route("GET", "/config")
async def model_config(request: Request) -> Response:
    """Give a model's configuration, as load generators read it."""
    model, limits = _model(request), _models(request).limits
    return _json(documents.model_config(model.name, model.manifest, limits.images, limits.max_wait_us))


@_model_route("GET", "/stats")
async def model_statistics(request: Request) -> Response:
    """Count what a model did."""
    model, models = _model(request), _models(request).statistics()
    chosen = [counts for counts in models if (counts.name, counts.version) == (model.name, model.version)]
    return _json(documents.statistics(chosen))


@_model_route("POST", "/infer")
async def model_infer(request: Request) -> Response:
    """Run a model on the tensors in the body."""
    models, model = _models(request), _model(request)
    with models.hold(request, model):
        body = await models.read_body(request)
        read = partial(infer.read, body, request.headers, model.manifest, models.limits)
        asked = await models.run(read, len(body))
        threshold, outcomes = await _predict(models, model, asked)
        write = partial(infer.write, asked, model, threshold, outcomes, request.headers)
        reply = await models.run(write, len(outcomes) * len(model.manifest.labels) * FLOAT_BYTES)
    return Response(reply.body, headers=dict(reply.headers))


async def _predict(models: Models, model: Model, asked: infer.Asked) -> tuple[float | None, Sequence[Outcome]]:
    """An empty batch has an empty answer, for which nothing need run."""
    if not asked.question.count:
        return None, ()
    return await models.predict(model, asked.question, asked.question.timeout_s)


@_route("POST", "/v2/repository/index")
async def index(request: Request) -> Response:
    """List what is in the repository."""
    models = _models(request)
    models.check_control(request)
    with models.hold(request):
        only_ready = repository.read_index_filter(await models.read_body(request))
    return _json(documents.index(await models.index(), only_ready))


@_route("POST", "/v2/repository/models/{name}/load")
async def load(request: Request) -> Response:
    """Load a model, or load it again."""
    models = _models(request)
    models.check_control(request)
    with models.hold(request):
        repository.check_load(await models.read_body(request))
    await models.load(request.path_params["name"])
    return Response()


@_route("POST", "/v2/repository/models/{name}/unload")
async def unload(request: Request) -> Response:
    """End a model."""
    models = _models(request)
    models.check_control(request)
    with models.hold(request):
        repository.check_unload(await models.read_body(request))
    await models.unload(request.path_params["name"])
    return Response()


_elsewhere = Elsewhere([route for route in router.routes if isinstance(route, APIRoute)])
for _path in ("/v2", "/v2/{rest:path}"):
    router.add_route(_path, _elsewhere, include_in_schema=False)  # type: ignore[arg-type]  # an ASGI application too
