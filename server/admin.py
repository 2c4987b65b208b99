"""Addresses for those who run the server: what is served, reloading, and values that change while it serves."""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from cascade.errors import BundleError, RequestError
from server.commands import Row
from server.options import FROM_JSON
from server.replies import error_reply
from server.schemas import AdminList, Changed, Failure, ReloadFailure, Report

router = APIRouter(prefix="/admin")

REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Failure, "description": "no key"},
    403: {"model": Failure, "description": "the wrong key"},
}
KNOWN = ("threshold", "max_stage", "profile")
CHANGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "threshold": {"type": ["number", "null"], "description": "energy to be exceeded"},
                        "max_stage": {"type": ["integer", "null"], "minimum": 0, "description": "the last stage"},
                        "profile": {
                            "type": ["string", "null"],
                            "description": "thresholds by name; not with threshold",
                        },
                    },
                },
                "example": {"threshold": 0.8, "max_stage": None},
            }
        },
    }
}


class BrokenBundles(BundleError):
    """Some bundles could not be loaded; what they would have replaced is still served."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


@router.post(
    "/reload", response_model=Report, responses={**REFUSALS, 409: {"model": Failure}, 422: {"model": ReloadFailure}}
)
async def reload(request: Request) -> Response:
    """Look at the folders again: serve what is new or changed, in every process, and take out what is gone."""
    return _report(await request.app.state.service.control.reload())


@router.get("/models", response_model=AdminList, responses=REFUSALS)
async def models(request: Request) -> Response:
    """List every version there is or should be, with the values it is given and its own."""
    service = request.app.state.service
    loaded = {(model.name, model.version): model for model in service.models.all()}
    rows = []
    for known in await service.control.index():
        model = loaded.get((known.name, known.version))
        values = {"controls": model and asdict(model.controls), "own": model and asdict(model.own)}
        rows.append({**asdict(known), **values})
    return _json(models=rows)


@router.patch(
    "/models/{name}",
    response_model=Changed,
    openapi_extra=CHANGES,
    responses={**REFUSALS, 400: {"model": Failure}, 404: {"model": Failure}},
)
async def change(request: Request, name: str) -> Response:
    """Change what requests to a model get that do not ask for something else; null goes back to its own value."""
    service = request.app.state.service
    with service.admin_intake.guest(request.receive) as guest:
        headers = request.headers
        body = await service.admin_intake.read(
            guest, headers.get("content-length", ""), headers.get("content-encoding", "")
        )
    old, new = await service.control.set_controls(name, read_changes(body))
    return _json(name=name, old=asdict(old), new=asdict(new))


def read_changes(body: bytes) -> dict[str, Any]:
    """Check what should be changed.

    Raises:
        RequestError: it is not an object of known names and fitting values.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict) or not document or set(document) - set(KNOWN):
        raise RequestError('the body must be like {"threshold": 0.8, "max_stage": null}, or {"profile": "accuracy-1"}')
    if document.get("threshold") is not None and document.get("profile") is not None:
        raise RequestError("threshold and profile are both given: give one, since a profile is a threshold by name")
    return {name: None if value is None else FROM_JSON[name](name, value) for name, value in document.items()}


def _report(rows: tuple[Row, ...]) -> Response:
    bundles = [{key: value for key, value in asdict(row).items() if value} for row in rows]
    broken = [row for row in rows if row.result == "broken"]
    if not broken:
        return _json(bundles=bundles)
    reasons = "; ".join(f"{row.folder}: {row.reason}" for row in broken)
    refusal = json.loads(
        error_reply(BrokenBundles("bundles", f"not all can be served, mend or remove: {reasons}")).body
    )
    return _json(HTTPStatus.UNPROCESSABLE_ENTITY, **refusal, bundles=bundles)


def _json(status: int = HTTPStatus.OK, **document: object) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
