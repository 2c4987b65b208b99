"""One question, from its body to its answer: read, take apart, decode, run, write.

What is light, a small body of small JPEGs, is decoded on the event loop; everything else in a thread, so that one large
photo does not hold up the small ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from cascade.errors import CascadeError, DeadlineExceeded, RequestError
from cascade.exits import Threshold
from server.codec import Caps, Question, decode, encode, read_question
from server.cores import roam
from server.intake import Intake
from server.journal import Record
from server.models import Controls, Model, Models
from server.options import Options
from server.outcome import Outcome
from server.replies import Reply
from server.runtime import Images
from server.settings import ServerSettings
from server.tracing import Trace, current

T = TypeVar("T")

LIGHT_BYTES = 65536


@dataclass(frozen=True)
class Answer:
    """What a model said to one question.

    Attributes:
        threshold: energy that had to be exceeded.
        outcomes: one an image.
        decode_s, queue_s, run_s: where the time went.
    """

    threshold: Threshold
    outcomes: Sequence[Outcome]
    decode_s: float
    queue_s: float
    run_s: float


class Predictor:
    """Answers questions, whatever protocol they came by.

    Args:
        settings: limits.
        models: that can be asked.

    Attributes:
        models: the same.
        caps: how much one question may hold.
        intake: the questions in hand.
    """

    def __init__(self, settings: ServerSettings, models: Models) -> None:
        self.models = models
        self.caps = Caps(settings.max_images, settings.max_pixels)
        self._timeout_s = settings.request_timeout_s
        self._threads = ThreadPoolExecutor(settings.decode_threads, "decode", roam)
        self.intake = Intake(
            settings.max_in_flight, settings.max_body_bytes, settings.max_buffered_bytes, settings.request_timeout_s
        )

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def answer(
        self, scope: Scope, receive: Receive, name: str | None = None, version: str | None = None
    ) -> Reply:
        """Answer `POST /predict`.

        Args:
            scope: of the request.
            receive: brings its body.
            name: of the model that is asked; default the first.
            version: default the current one.

        Raises:
            CascadeError: one of those that carry a status.
            ClientDisconnect: nobody waits any more.
        """
        headers = Headers(scope=scope)
        with self.intake.guest(receive) as guest, (model := self.models.get(name, version)) as controls:
            deadline = self.deadline(headers.get("x-deadline-ms"))
            model.engine.check_room(deadline)
            body = await self.intake.read(guest, headers.get("content-length", ""), headers.get("content-encoding", ""))
            query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            content_type = headers.get("content-type", "")
            rule = model.manifest.preprocess

            def read() -> Question:
                return read_question(content_type, body, query, rule, self.caps)

            question = read() if len(body) <= LIGHT_BYTES else await self.in_thread(read, deadline)
            answer = await self.ask(model, question, deadline, scope.get("rescade"), controls)
        return write(model, answer, question.options)

    def deadline(self, asked_ms: str | None) -> float:
        """When an answer that is begun now stops being of use, on the clock of `time.monotonic`.

        Args:
            asked_ms: what `X-Deadline-Ms` says; a deadline later than the server's own limit is that limit.

        Raises:
            RequestError: it is no number of milliseconds.
        """
        now, seconds = time.monotonic(), self._timeout_s
        if asked_ms is None:
            return now + seconds
        try:
            asked = float(asked_ms) / 1000
        except ValueError:
            asked = -1.0
        if not 0 < asked < float("inf"):
            raise RequestError(f"X-Deadline-Ms must be a number of milliseconds above 0, not {asked_ms[:40]!r}")
        return now + min(seconds, asked)

    async def ask(
        self,
        model: Model,
        question: Question,
        deadline: float,
        record: Record | None = None,
        controls: Controls | None = None,
    ) -> Answer:
        """Decode a question and have the model's engine answer it.

        Args:
            model: that is asked.
            question: taken apart, not decoded.
            deadline: on the clock of `time.monotonic`.
            record: told of what should be in the log.
            controls: of when the model was looked up, where it has been held since; default those of now.

        Raises:
            CascadeError: one of those that carry a status.
        """
        began, trace = time.perf_counter(), current.get()
        if trace is not None:
            trace.model, trace.version = model.name, model.version
        try:
            with model as now:
                answer = await self._ask(model, question, deadline, began, trace, controls or now)
        except CascadeError:
            model.metrics.asked(False, time.perf_counter() - began)
            raise
        model.metrics.asked(True, time.perf_counter() - began)
        exits = note_exits(model, answer.outcomes, record)
        if trace is not None:
            trace.exits = exits
        return answer

    async def _ask(
        self,
        model: Model,
        question: Question,
        deadline: float,
        began: float,
        trace: Trace | None,
        controls: Controls,
    ) -> Answer:
        options = question.options
        images = await self._decode(question, model, deadline)
        decoded = time.perf_counter()
        threshold = model.threshold(options.threshold, options.profile, controls)
        max_stage = controls.max_stage if options.max_stage is None else options.max_stage
        if trace is not None:
            trace.decoded(decoded - began, len(images), threshold)
        outcomes = await model.engine.predict(
            images, threshold, max_stage, deadline, options.allow_truncated, trace, options.turn
        )
        elapsed = time.perf_counter() - decoded
        run = min(elapsed, max(outcome.run_s for outcome in outcomes))
        return Answer(threshold, outcomes, decoded - began, elapsed - run, run)

    async def _decode(self, question: Question, model: Model, deadline: float) -> Images:
        rule = model.manifest.preprocess

        def work() -> Images:
            return decode(question, rule, self.caps, lambda: time.monotonic() > deadline)

        return work() if question.is_light() else await self.in_thread(work, deadline)

    async def in_thread(self, work: Callable[[], T], deadline: float) -> T:
        """Do some work beside the event loop.

        Args:
            work: decodes, or takes apart.
            deadline: on the clock of `time.monotonic`.

        Raises:
            DeadlineExceeded: it was not done in time.
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError as error:
            raise DeadlineExceeded("the images could not be decoded in time: send fewer or smaller ones") from error


def note_exits(model: Model, outcomes: Sequence[Outcome], record: Record | None) -> list[int]:
    """How many images left at each stage, noted for the log if there is a record."""
    stages = [outcome.stage for outcome in outcomes]
    exits = [stages.count(stage) for stage in range(len(model.manifest.stages))]
    if record is not None:
        record.fields.update(model=model.name, version=model.version, images=len(stages), exits=exits)
    return exits


def write(model: Model, answer: Answer, options: Options) -> Reply:
    """The answer as it goes out."""
    body = encode(answer.outcomes, model.manifest, answer.threshold, options)
    times = answer.decode_s * 1000, answer.queue_s * 1000, answer.run_s * 1000
    return Reply(200, body, [(b"server-timing", b"decode;dur=%.3f, queue;dur=%.3f, run;dur=%.3f" % times)])
