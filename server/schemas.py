"""What goes over the wire, for the OpenAPI document and for readers.

`/predict` is read and written by `server.codec`, by hand, since a model a number would cost more than the network. The
models here describe the same shapes; the tests hold the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Wire(BaseModel):
    """Something sent or received; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Score(Wire):
    """One class and how likely it is."""

    label: Annotated[str, Field(description="name of the class", examples=["cat"])]
    index: Annotated[int, Field(alias="class", description="index of the class", examples=[3])]
    score: Annotated[float | None, Field(description="softmax probability; null if it is not finite", examples=[0.93])]


class Prediction(Score):
    """What the cascade says about one image."""

    stage: Annotated[int, Field(description="stage at which it left; 0 is the first student", examples=[0])]
    energy: Annotated[float | None, Field(description="energy that was tested there", examples=[0.87])]
    top: Annotated[list[Score], Field(description="the top_k classes, best first")]
    logits: Annotated[list[float | None] | None, Field(description="sum of the stages that ran, if asked for")] = None
    truncated: Annotated[bool, Field(description="it left because time ran out; only there if so")] = False


class Answer(Wire):
    """Answer of `POST /predict`."""

    model: Annotated[str, Field(description="name of the bundle", examples=["cifar10"])]
    version: Annotated[str, Field(description="version of the bundle", examples=["1"])]
    threshold: Annotated[
        float | list[float], Field(description="energy that had to be exceeded; several: one a stage", examples=[0.82])
    ]
    predictions: Annotated[list[Prediction], Field(description="one an image, in the order they were sent")]


class Fault(Wire):
    """What went wrong and what to do about it."""

    code: Annotated[str, Field(description="stable name for machines", examples=["bad_image"])]
    message: Annotated[str, Field(description="for people")]
    request_id: Annotated[str | None, Field(description="the same as in the header X-Request-Id")]


class Failure(Wire):
    """Every answer that is no success."""

    error: Fault


class Health(Wire):
    """Answer of the health checks."""

    status: Annotated[str, Field(examples=["ready"])]


class ControlValues(Wire):
    """What a request gets that does not ask for something else."""

    threshold: Annotated[
        float | list[float], Field(description="energy to be exceeded; several: one a stage", examples=[0.82])
    ]
    max_stage: Annotated[int | None, Field(description="the last stage that may run; null for the last there is")]


class ModelRow(Wire):
    """One model."""

    name: Annotated[str, Field(description="name of the bundle", examples=["cifar10"])]
    versions: Annotated[list[str], Field(description="in natural order", examples=[["9", "10"]])]
    current: Annotated[str, Field(description="the version that is asked where none is named", examples=["10"])]
    ready: Annotated[bool, Field(description="whether every stage of every version is warm")]
    controls: Annotated[ControlValues, Field(description="of the current version")]


class ModelList(Wire):
    """Answer of `GET /models`."""

    models: Annotated[list[ModelRow], Field(description="the first is the one that `/predict` asks")]


class BundleResult(Wire):
    """What a reload did with one bundle."""

    name: Annotated[str, Field(description="of the bundle, as far as it could be read")] = ""
    version: Annotated[str, Field(description="of the bundle, as far as it could be read")] = ""
    result: Literal["loaded", "kept", "removed", "broken"]
    reason: Annotated[str, Field(description="why it is broken")] = ""
    folder: Annotated[str, Field(description="where it is, if it is broken")] = ""


class Report(Wire):
    """Answer of `POST /admin/reload`."""

    bundles: list[BundleResult]


class ReloadFailure(Failure):
    """Answer of `POST /admin/reload` where something is broken; the rest was done."""

    bundles: list[BundleResult]


class OverrideValues(Wire):
    """What replaces a model's own values; null where nothing does."""

    threshold: float | None
    max_stage: int | None
    profile: str | None


class Changed(Wire):
    """Answer of `PATCH /admin/models/{name}`."""

    name: str
    old: OverrideValues
    new: OverrideValues


class AdminRow(Wire):
    """One version of a model."""

    name: str
    version: Annotated[str, Field(description="empty if it is not known")]
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: Annotated[str, Field(description="why it is unavailable")]
    controls: Annotated[ControlValues | None, Field(description="what requests get; null if it is not served")]
    own: Annotated[ControlValues | None, Field(description="what they got without a change while it serves")]


class AdminList(Wire):
    """Answer of `GET /admin/models`."""

    models: list[AdminRow]


_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "threshold": ({"type": "number"}, "energy to be exceeded; 0 never goes past stage 0, 1 runs every stage"),
    "max_stage": ({"type": "integer", "minimum": 0}, "the last stage that may run"),
    "top_k": ({"type": "integer", "minimum": 1, "default": 1}, "how many classes to name"),
    "logits": ({"type": "boolean", "default": False}, "whether to give the logits"),
    "allow_truncated": (
        {"type": "boolean", "default": False},
        "whether an answer of the stages that ran is better than none when time runs out",
    ),
    "profile": ({"type": "string"}, "the bundle's thresholds of that name, instead of a threshold"),
    "priority": (
        {"type": "integer", "minimum": 0, "default": 0},
        "whose images run first where several wait: 1 before 2 before 3; 0 is as 2",
    ),
}
_BYTES = {"type": "string", "format": "binary"}
_PROPERTIES = {name: {**schema, "description": text} for name, (schema, text) in _OPTIONS.items()}
_NUMBERS = {"type": "array", "description": "(3, H, W) or (N, 3, H, W) finite numbers, preprocessed", "items": {}}
_JSON_BODY = {
    "oneOf": [
        {
            "type": "object",
            "required": ["images"],
            "additionalProperties": False,
            "properties": {
                "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "byte"}},
                **_PROPERTIES,
            },
        },
        {
            "type": "object",
            "required": ["inputs"],
            "additionalProperties": False,
            "properties": {"inputs": _NUMBERS, **_PROPERTIES},
        },
    ]
}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": _BYTES, "description": "any part with a file name"},
        **_PROPERTIES,
    },
}
_DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNoaGgAAAMEAYFL09IQAAAAAElFTkSuQmCC"  # one grey pixel

PREDICT: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
        for name, (schema, text) in _OPTIONS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BYTES},
            "application/octet-stream": {"schema": _BYTES},
            "multipart/form-data": {"schema": _FORM},
            "application/json": {
                "schema": _JSON_BODY,
                "examples": {
                    "images": {"summary": "encoded images", "value": {"images": [_DOT], "top_k": 3}},
                    "inputs": {
                        "summary": "ready inputs, shortened",
                        "value": {"inputs": [[[[0.0]]]], "threshold": 0.9},
                    },
                },
            },
        },
    },
}
"""OpenAPI of the body and the options of `POST /predict`."""
