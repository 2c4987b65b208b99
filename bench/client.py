"""A client for the server's HTTP interface: typed answers, one deadline a request, connections kept and bounded.

    async with Client("http://127.0.0.1:8000", connections=8, timeout_s=5) as client:
        answer = await client.predict(image, "image/jpeg", threshold=0.8)
        print(answer.best.label, answer.best.stage)

Waiting for a free connection, connecting, sending and receiving all count against one deadline. Idle connections are
used in turn, the one that has rested longest first, so that a server of several processes sees them all at work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, Self
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.address import PREDICT, Address, parse
from bench.connection import Connection, Response, connect
from bench.errors import BadAnswer, Refused, TimedOut


class Received(BaseModel):
    """Immutable, read from a server; keys that a later server adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Prediction(Received):
    """The answer for one image.

    Attributes:
        label: name of the class.
        index: its number; `class` on the wire.
        score: its probability.
        stage: where the sample left, 0 is the first student.
        energy: the energy that was tested there.
        top: the best classes, as the server lists them.
    """

    label: str
    index: int = Field(alias="class")
    score: float | None
    stage: Annotated[int, Field(ge=0, le=1023)]
    energy: float | None
    top: tuple[dict[str, Any], ...] = ()


class Answer(Received):
    """What the server says to one request.

    Attributes:
        model: name of the bundle.
        version: its version.
        threshold: the one that was applied.
        predictions: one an image, in the order they were sent.
        received_at: reading of the client's clock when the last byte arrived, seconds.
    """

    model: str
    version: str
    threshold: float
    predictions: Annotated[tuple[Prediction, ...], Field(min_length=1)]
    received_at: float = Field(default=0.0, exclude=True)

    @property
    def best(self) -> Prediction:
        """The answer for the first image."""
        return self.predictions[0]


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


class Client:
    """Asks one server.

    Args:
        url: base address, with or without `/predict`.
        connections: most connections open at once; further requests wait for one.
        timeout_s: deadline of a request that names none, seconds.
        clock: a monotonic clock, seconds, for the stamps on answers.

    Raises:
        AskedWrongly: `url` is not an address.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        connections: int = 1,
        timeout_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.address = parse(url) if isinstance(url, str) else url
        self.timeout_s = timeout_s
        self._clock = clock
        self._turns = asyncio.Semaphore(connections)
        self._idle: deque[Connection] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop all idle connections."""
        while self._idle:
            self._idle.popleft().close()
        await asyncio.sleep(0)

    async def predict(
        self,
        image: bytes,
        content_type: str = "application/octet-stream",
        *,
        threshold: float | None = None,
        max_stage: int | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask for the class of one encoded image.

        Args:
            image: the bytes of an image file.
            content_type: its media type.
            threshold: energy to be exceeded; default the server's own.
            max_stage: last stage that may run; default all.
            top_k: how many of the best classes to list; default the server's own.
            timeout_s: deadline from now, seconds; default the client's.

        Raises:
            ClientError: one of its kinds; see `bench.errors`.
        """
        asked = {"threshold": threshold, "max_stage": max_stage, "top_k": top_k}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        target = f"{PREDICT}?{query}" if query else PREDICT
        response = await self._send("POST", target, image, content_type, timeout_s)
        try:
            answer = Answer.model_validate_json(response.body)
        except ValidationError as error:
            raise BadAnswer(f"POST {PREDICT} did not answer as agreed: {_first_fault(error)}") from error
        return answer.model_copy(update={"received_at": response.received_at})

    async def bundle(self, *, timeout_s: float | None = None) -> BundleInfo:
        """Ask what the server serves.

        Raises:
            ClientError: one of its kinds; `Refused` or `BadAnswer` where the server has no such route.
        """
        response = await self._send("GET", "/bundle", b"", None, timeout_s)
        try:
            return BundleInfo.model_validate_json(response.body)
        except ValidationError as error:
            raise BadAnswer(f"GET /bundle did not answer as agreed: {_first_fault(error)}") from error

    async def _send(
        self, method: str, target: str, body: bytes, content_type: str | None, timeout_s: float | None
    ) -> Response:
        kind = f"Content-Type: {content_type}\r\n" if content_type else ""
        head = (
            f"{method} {self.address.prefix}{target} HTTP/1.1\r\nHost: {self.address.authority}\r\n"
            f"Accept: application/json\r\n{kind}Content-Length: {len(body)}\r\n\r\n"
        )
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit), self._turns:
                response = await self._exchange(head.encode("ascii") + body)
        except TimeoutError as error:
            raise TimedOut(f"no answer from {self.address} within {limit:.3g} s") from error
        if response.status != 200:
            raise _refusal(response)
        return response

    async def _exchange(self, request: bytes) -> Response:
        connection = await self._connection()
        try:
            response = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)
        return response

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.popleft()
            if connection.open:
                return connection
        return await connect(self.address, self._clock)


class _ErrorBody(Received):
    code: str = ""
    message: str = ""


class _ErrorDocument(Received):
    error: _ErrorBody


def _refusal(response: Response) -> Refused:
    """The server's own words where it sent the agreed JSON, the status alone where it did not."""
    try:
        error = _ErrorDocument.model_validate_json(response.body).error
    except ValidationError:
        return Refused(response.status, "", "the server gave no reason")
    return Refused(response.status, error.code, error.message or "the server gave no reason")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
