"""One question, from its body to its answer: read, take apart, decode, run, write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from cascade.errors import DeadlineExceeded, Overloaded, SlowRequest, TooLarge, UnsupportedType
from cascade.exits import Floats
from cascade.manifest import Manifest
from server.codec import Caps, decode, encode, read_question
from server.engine import Engine
from server.middleware import Record
from server.options import Options
from server.settings import ServerSettings


@dataclass
class _Place:
    """What one request holds: a place among those in hand, and the bytes of its body."""

    size: int = 0


class Predictor:
    """Answers `POST /predict`.

    Args:
        settings: limits, and the threshold that replaces the bundle's.
        manifest: of the bundle that is served.
        engine: runs the cascade.
    """

    def __init__(self, settings: ServerSettings, manifest: Manifest, engine: Engine) -> None:
        self._settings = settings
        self._manifest = manifest
        self._engine = engine
        self._caps = Caps(settings.max_images, settings.max_pixels)
        self._threshold = manifest.exit.threshold if settings.threshold is None else settings.threshold
        self._threads = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._in_hand = 0
        self._buffered = 0

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def answer(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            CascadeError: one of those that carry a status.
            ClientDisconnect: nobody waits any more.
        """
        self._engine.check_ready()
        deadline = time.monotonic() + self._settings.request_timeout_s
        with self._place() as place:
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    body = await self._read(request, place)
            except TimeoutError as error:
                raise SlowRequest("the body did not arrive in time: send it faster, or send less") from error
            async with _while_connected(request.receive):
                return await self._respond(request, body, deadline)

    @contextmanager
    def _place(self) -> Iterator[_Place]:
        if self._in_hand >= self._settings.max_in_flight:
            raise Overloaded(f"{self._in_hand} requests are in hand, which is the limit: try again later")
        place = _Place()
        self._in_hand += 1
        try:
            yield place
        finally:
            self._in_hand -= 1
            self._buffered -= place.size

    async def _read(self, request: Request, place: _Place) -> bytes:
        """The whole body, if it stays under its limit; the length it announces is checked first, then what comes."""
        limit = self._settings.max_body_bytes
        too_large = TooLarge(f"the body is larger than {limit} bytes: send fewer or smaller images")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedType("Content-Encoding is not understood: send the body as it is")
        announced = request.headers.get("Content-Length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
            raise too_large
        chunks = []
        async for chunk in request.stream():
            place.size += len(chunk)
            self._buffered += len(chunk)
            if place.size > limit:
                raise too_large
            if self._buffered > self._settings.max_buffered_bytes:
                raise Overloaded("the bodies in hand fill the memory set aside for them: try again later")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _respond(self, request: Request, body: bytes, deadline: float) -> Response:
        began = time.perf_counter()
        content_type = request.headers.get("Content-Type", "")
        query = request.query_params.multi_items()
        options, images = await self._decode(content_type, body, query, deadline)
        decoded = time.perf_counter()
        record: Record = request.scope["rescade"]
        record.fields["images"] = len(images)
        threshold = self._threshold if options.threshold is None else options.threshold
        outcomes = await self._engine.predict(images, threshold, options.max_stage, deadline)
        elapsed = time.perf_counter() - decoded
        stages = [outcome.stage for outcome in outcomes]
        record.fields["exits"] = [stages.count(stage) for stage in range(len(self._manifest.stages))]
        run = min(elapsed, max(outcome.run_s for outcome in outcomes))
        spans = {"decode": decoded - began, "queue": elapsed - run, "run": run}
        timing = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in spans.items())
        answer = encode(outcomes, self._manifest, threshold, options)
        return Response(answer, headers={"Server-Timing": timing}, media_type="application/json")

    async def _decode(
        self, content_type: str, body: bytes, query: list[tuple[str, str]], deadline: float
    ) -> tuple[Options, Floats]:
        rule = self._manifest.preprocess

        def work() -> tuple[Options, Floats]:
            question = read_question(content_type, body, query, rule, self._caps)
            return question.options, decode(question, rule, self._caps, lambda: time.monotonic() > deadline)

        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError as error:
            raise DeadlineExceeded("the images could not be decoded in time: send fewer or smaller ones") from error


@asynccontextmanager
async def _while_connected(receive: Receive) -> AsyncIterator[None]:
    """Stop what is inside as soon as the client hangs up.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.current_task()
    assert task is not None, "there is no request without a task"
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
