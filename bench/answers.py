"""What a server says, typed and frozen: bytes of a response to an answer, or to the error they stand for.

Keys that a later server adds are passed over, and a number that is not finite, which JSON cannot say, is `None`.
"""

from __future__ import annotations

import time
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.connection import Response
from bench.errors import BadAnswer, Refused
from bench.retry import asked_wait_s

NO_REASON = "the server gave no reason"


class Received(BaseModel):
    """Immutable, read from a server."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


Document = TypeVar("Document", bound=Received)


class Score(Received):
    """One class and how likely it is.

    Attributes:
        label: name of the class.
        index: its number; `class` on the wire.
        score: its probability.
    """

    label: str
    index: int = Field(alias="class")
    score: float | None


class Prediction(Score):
    """The answer for one image.

    Attributes:
        stage: where the sample left, 0 is the first student.
        energy: the energy that was tested there.
        top: the best classes, best first; as many as were asked for.
        logits: the sum of the stages that ran, if it was asked for.
        truncated: whether the deadline cut the cascade short before the sample was sure.
    """

    stage: Annotated[int, Field(ge=0, le=1023)]
    energy: float | None
    top: tuple[Score, ...] = ()
    logits: tuple[float | None, ...] | None = None
    truncated: bool = False


class Answer(Received):
    """What the server says to one request.

    Attributes:
        model: name of the bundle.
        version: its version.
        threshold: the one that was applied; several where a profile has one a stage.
        predictions: one an image, in the order they were sent.
        request_id: the name of the request in the server's log.
        received_at: reading of the client's clock when the last byte arrived, seconds.
    """

    model: str
    version: str
    threshold: float | tuple[float, ...]
    predictions: Annotated[tuple[Prediction, ...], Field(min_length=1)]
    request_id: str | None = Field(default=None, exclude=True)
    received_at: float = Field(default=0.0, exclude=True)

    @property
    def best(self) -> Prediction:
        """The answer for the first image."""
        return self.predictions[0]


class Health(Received):
    """What a health check says.

    Attributes:
        status: `live` or `ready`.
    """

    status: str


class StageInfo(Received):
    """What a manifest says about one stage, as far as a client cares.

    Attributes:
        macs: multiply-accumulates for one image.
    """

    macs: Annotated[int, Field(ge=0)]


class BundleInfo(Received):
    """What `GET /bundle` says, as far as a client cares.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        stages: in the order they run.
        labels: names of the classes.
    """

    name: str
    version: str
    stages: Annotated[tuple[StageInfo, ...], Field(min_length=1)]
    labels: tuple[str, ...]


class _ErrorBody(Received):
    code: str = ""
    message: str = ""
    request_id: str | None = None


class _ErrorDocument(Received):
    error: _ErrorBody


def read_answer(response: Response) -> Answer:
    """Read the answer to `POST /predict`.

    Raises:
        Refused: the status says so.
        BadAnswer: it is not the JSON that was agreed.
    """
    answer = read(Answer, response, "POST /predict")
    return answer.model_copy(
        update={"received_at": response.received_at, "request_id": response.headers.get("x-request-id")}
    )


def read(kind: type[Document], response: Response, asked: str) -> Document:
    """Read a document of one kind.

    Args:
        kind: what was agreed.
        response: of any status.
        asked: method and path, for the message of an error.

    Raises:
        Refused: the status is not 200.
        BadAnswer: it is not the JSON that was agreed.
    """
    if response.status != 200:
        raise refusal(response)
    try:
        return kind.model_validate_json(response.body)
    except ValidationError as error:
        raise BadAnswer(f"{asked} did not answer as agreed: {_first_fault(error)}") from error


def refusal(response: Response) -> Refused:
    """The server's own words where it sent the agreed JSON; status and content type where it did not."""
    headers = response.headers
    wait_s = asked_wait_s(headers.get("retry-after"), headers.get("date"), time.time())
    request_id = headers.get("x-request-id")
    try:
        error = _ErrorDocument.model_validate_json(response.body).error
    except ValidationError:
        kind = headers.get("content-type", "no content type")
        words = f"{NO_REASON} known to rescade ({kind}, {len(response.body)} bytes)"
        return Refused(response.status, "", words, request_id, wait_s)
    request_id = error.request_id or request_id
    return Refused(response.status, error.code, error.message or NO_REASON, request_id, wait_s)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
