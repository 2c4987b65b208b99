"""Which address answers what. No logic: each route asks one object one thing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from cascade.errors import NotReady
from server.metrics import CONTENT_TYPE
from server.models import Model, Models
from server.schemas import PREDICT, Answer, Failure, Health, ModelList

router = APIRouter()

PREDICT_PATHS = ("/predict", "/models/{name}/predict", "/models/{name}/versions/{version}/predict")

BAD: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "wrong shape, option, form or JSON"},
    408: {"model": Failure, "description": "the body did not arrive in time"},
    413: {"model": Failure, "description": "too many bytes, pixels or images"},
    415: {"model": Failure, "description": "a content type that is not understood"},
    422: {"model": Failure, "description": "an image that cannot be decoded"},
    500: {"model": Failure, "description": "a network could not be run"},
    503: {"model": Failure, "description": "warming up, or too much work in hand; see Retry-After"},
    504: {"model": Failure, "description": "the answer would come too late"},
}


UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Failure, "description": "no such model or version"}}


async def _predict(request: Request, name: str | None = None, version: str | None = None) -> Response:
    reply = await request.app.state.service.predictor.answer(request.scope, request.receive, name, version)
    return reply.response()  # type: ignore[no-any-return]


@router.post(PREDICT_PATHS[0], openapi_extra=PREDICT, responses={200: {"model": Answer}, **BAD})
async def predict(request: Request) -> Response:
    """Classify one image, or several, by the first model."""
    return await _predict(request)


@router.post(PREDICT_PATHS[1], openapi_extra=PREDICT, responses={200: {"model": Answer}, **BAD, **UNKNOWN})
async def predict_by(request: Request, name: str) -> Response:
    """Classify by the current version of a model."""
    return await _predict(request, name)


@router.post(PREDICT_PATHS[2], openapi_extra=PREDICT, responses={200: {"model": Answer}, **BAD, **UNKNOWN})
async def predict_by_version(request: Request, name: str, version: str) -> Response:
    """Classify by one version of a model."""
    return await _predict(request, name, version)


@router.get("/health/live", response_model=Health)
async def live() -> Response:
    """Say that the process answers at all."""
    return Response(b'{"status":"live"}', media_type="application/json")


@router.get("/health/ready", response_model=Health, responses={503: BAD[503]})
async def ready(request: Request) -> Response:
    """Say whether every stage is warm and the server is not about to stop."""
    if not request.app.state.service.ready:
        raise NotReady("the networks are warming up, or the server is about to stop")
    return Response(b'{"status":"ready"}', media_type="application/json")


@router.get("/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """List the models; `/predict` asks the first."""
    found = _models(request)
    return _json({"models": [_row(found, name) for name in found.names()]})


@router.get("/bundle", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def bundle(request: Request) -> Response:
    """Give the manifest of the first model's bundle."""
    return _manifest(_models(request).get())


@router.get("/models/{name}/bundle", response_class=Response, responses=UNKNOWN)
async def bundle_of(request: Request, name: str) -> Response:
    """Give the manifest of a model's current version."""
    return _manifest(_models(request).get(name))


@router.get("/models/{name}/versions/{version}/bundle", response_class=Response, responses=UNKNOWN)
async def bundle_of_version(request: Request, name: str, version: str) -> Response:
    """Give the manifest of one version of a model."""
    return _manifest(_models(request).get(name, version))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Give Prometheus' figures, summed over all workers."""
    return Response(request.app.state.service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


def _models(request: Request) -> Models:
    found: Models = request.app.state.service.models
    return found


def _manifest(model: Model) -> Response:
    return Response(model.document, media_type="application/json")


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _row(models: Models, name: str) -> dict[str, object]:
    """What the list says of one name."""
    versions = models.versions(name)
    return {
        "name": name,
        "versions": [model.version for model in versions],
        "current": versions[-1].version,
        "ready": all(model.engine.ready for model in versions),
        "controls": asdict(versions[-1].controls),
    }
