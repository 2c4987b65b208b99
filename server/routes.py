"""Which address answers what. No logic: each route asks one object one thing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from cascade.errors import NotReady
from server.metrics import CONTENT_TYPE
from server.schemas import PREDICT, Answer, Failure, Health

router = APIRouter()

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


@router.post("/predict", openapi_extra=PREDICT, responses={200: {"model": Answer}, **BAD}, response_class=Response)
async def predict(request: Request) -> Response:
    """Classify one image, or several."""
    reply = await request.app.state.service.predictor.answer(request.scope, request.receive)
    return reply.response()  # type: ignore[no-any-return]


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


@router.get("/bundle", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def bundle(request: Request) -> Response:
    """Give the manifest of the bundle that is served."""
    return Response(request.app.state.service.models.get().document, media_type="application/json")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Give Prometheus' figures, summed over all workers."""
    return Response(request.app.state.service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
