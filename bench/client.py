"""A client for programs that use a server: it repeats what is safe to repeat, and waits as long as it is told to.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        answer = await client.predict("cat.png", top_k=3)
        print(answer.best.label, answer.best.stage)

`bench.sync.Client` is the same without `await`. A question ends with an answer or with one `ClientError` (see
`bench.errors`); a question that makes no sense ends with `AskedWrongly` before anything is sent.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Self, Unpack

from bench.address import parse
from bench.answers import Answer, BundleInfo, Health, Prediction, read, read_answer, refusal
from bench.batches import batches, in_flight
from bench.connection import Response
from bench.errors import AskedWrongly, BadAnswer, ClientError, Dropped, Refused, TimedOut, Unreachable
from bench.pool import Pool
from bench.question import Image, Images, Options, Question, question, target
from bench.request import encode, header
from bench.retry import Retry

NOT_YET = frozenset({502, 503, 504})
POLL_S = 0.2
USUAL = Retry()
ONCE = Retry(attempts=1)


@dataclass(frozen=True)
class Effects:
    """What a client takes from the world beside the network.

    Attributes:
        now: a monotonic clock, seconds.
        sleep: waits so many seconds.
        jitter: a random number in [0, 1).
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


REAL = Effects()


@dataclass(frozen=True, slots=True)
class _Call:
    """One request, as often as it is sent."""

    method: str
    target: str
    timeout_s: float
    asked: Question | None = None
    headers: str = ""
    deadline_s: float = math.inf


class AsyncClient:
    """Asks one server, from one event loop.

    Args:
        url: base address, http or https.
        api_key: sent as `X-Api-Key`.
        connections: most open at once; further requests wait for one.
        timeout_s: longest time for a call with all its attempts, seconds.
        connect_timeout_s: longest time to make a connection, seconds.
        keep_alive_s: a connection that rested longer is not used again, seconds.
        verify: whether to check the server's certificate, or how: a context of one's own.
        retry: how often to ask, and how long to wait in between.
        effects: clock, sleep and chance.

    Raises:
        AskedWrongly: `url` is not an address, the key is no header, or there are no connections.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        connections: int = 16,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        keep_alive_s: float = 25.0,
        verify: bool | ssl.SSLContext = True,
        retry: Retry = USUAL,
        effects: Effects = REAL,
    ) -> None:
        if connections < 1:
            raise AskedWrongly(f"connections is at least 1, not {connections}")
        self.address = parse(url)
        self._timeout_s = timeout_s
        self._retry = retry
        self._effects = effects
        self._headers = "" if api_key is None else header("X-Api-Key", api_key)
        self._pool = Pool(
            self.address,
            connections=connections,
            connect_timeout_s=connect_timeout_s,
            keep_alive_s=keep_alive_s,
            resend=True,
            tls=_unverified() if verify is False else None if verify is True else verify,
            clock=effects.now,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop all connections that are not in use; calls under way still get their answers, new ones do not."""
        await self._pool.close()

    async def predict(self, images: Images, **options: Unpack[Options]) -> Answer:
        """Ask what is on one image, or on several.

        Args:
            images: bytes of an image file, a path, a (3, H, W) array of ready inputs; or several of one kind, or an
                (N, 3, H, W) array.
            options: see `Options`.

        Returns:
            One prediction an image, in order.

        Raises:
            ClientError: one of its kinds; see `bench.errors`.
            AskedWrongly: an image or an option makes no sense.
        """
        asked = question(images) if isinstance(images, bytes) else await asyncio.to_thread(question, images)
        answer = read_answer(await self._answered(self._question(asked, options), self._retry))
        if len(answer.predictions) != asked.count:
            raise BadAnswer(f"POST /predict answered {len(answer.predictions)} predictions to {asked.count} images")
        return answer

    async def predict_many(
        self, images: Iterable[Image], *, batch_size: int = 8, concurrency: int = 4, **options: Unpack[Options]
    ) -> AsyncIterator[Prediction]:
        """Ask about any number of images, some at a time.

        Args:
            images: read no further ahead than is needed.
            batch_size: images in one request.
            concurrency: requests at once.
            options: of each request; see `Options`.

        Yields:
            One prediction an image, in order.

        Raises:
            ClientError: a request failed; the predictions before it have been given.
            AskedWrongly: an image or an option makes no sense.
        """

        def start(batch: list[Image]) -> asyncio.Task[Answer]:
            task = asyncio.create_task(self.predict(batch, **options))
            task.add_done_callback(_looked_at)
            return task

        with closing(in_flight(batches(images, batch_size), start, concurrency)) as tasks:
            for task in tasks:
                for prediction in (await task).predictions:
                    yield prediction

    async def health(self) -> Health:
        """Ask whether the server answers at all.

        Raises:
            ClientError: it does not.
        """
        return read(Health, await self._get("/health/live"), "GET /health/live")

    async def ready(self) -> bool:
        """Ask whether the server would answer a question: all networks are warm, and it is not about to stop.

        Raises:
            ClientError: it says neither yes nor no.
        """
        try:
            read(Health, await self._get("/health/ready"), "GET /health/ready")
        except Refused as refused:
            if refused.status != 503:
                raise
            return False
        return True

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the server is ready; until then it may be unreachable.

        Raises:
            TimedOut: it was not, for so long.
            ClientError: something answers that is no such server.
        """
        ends_at = self._effects.now() + timeout_s
        while True:
            left_s = ends_at - self._effects.now()
            try:
                read(Health, await self._get("/health/ready", left_s), "GET /health/ready")
                return
            except (Unreachable, Dropped, TimedOut, Refused) as failure:
                if isinstance(failure, Refused) and failure.status not in NOT_YET:
                    raise
                if self._effects.now() + POLL_S >= ends_at:
                    words = f"{self.address} was not ready within {timeout_s:.3g} s: {failure}"
                    raise TimedOut(words) from failure
            await self._effects.sleep(POLL_S)

    async def bundle(self) -> BundleInfo:
        """Ask what the server serves.

        Raises:
            ClientError: one of its kinds; see `bench.errors`.
        """
        return read(BundleInfo, await self._get("/bundle", retry=self._retry), "GET /bundle")

    async def _get(self, target: str, timeout_s: float = math.inf, retry: Retry = ONCE) -> Response:
        return await self._answered(_Call("GET", target, min(timeout_s, self._timeout_s)), retry)

    def _question(self, asked: Question, options: Options) -> _Call:
        timeout_s, request_id, deadline_ms = (
            options.get("timeout_s"),
            options.get("request_id"),
            options.get("deadline_ms"),
        )
        return _Call(
            "POST",
            target(options),
            self._timeout_s if timeout_s is None else timeout_s,
            asked,
            "" if request_id is None else header("X-Request-Id", request_id),
            math.inf if deadline_ms is None else deadline_ms / 1000,
        )

    async def _answered(self, call: _Call, retry: Retry) -> Response:
        """A response of status 200, within the call's time."""
        try:
            async with asyncio.timeout(call.timeout_s):
                return await self._repeated(call, retry)
        except TimeoutError as error:
            raise TimedOut(f"no answer from {self.address} within {call.timeout_s:.3g} s") from error

    async def _repeated(self, call: _Call, retry: Retry) -> Response:
        effects, attempt = self._effects, 1
        begun_at = effects.now()
        ends_at = begun_at + min(call.deadline_s, call.timeout_s)
        while True:
            try:
                return await self._once(call, begun_at + call.deadline_s - effects.now())
            except ClientError as failure:
                wait_s = retry.wait_s(failure, attempt, ends_at - effects.now(), effects.jitter())
                if wait_s is None:
                    raise
            await effects.sleep(wait_s)
            attempt += 1

    async def _once(self, call: _Call, left_s: float) -> Response:
        headers = self._headers + call.headers
        if left_s < math.inf:
            headers += header("X-Deadline-Ms", str(max(1, round(left_s * 1000))))
        body, content_type = (b"", None) if call.asked is None else (call.asked.body, call.asked.content_type)
        request = encode(self.address, call.method, call.target, body, content_type, headers)
        response = await self._pool.exchange(request)
        if response.status != 200:
            raise refusal(response)
        return response


def _unverified() -> ssl.SSLContext:
    """Encrypted, with whoever answers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _looked_at(task: asyncio.Task[Answer]) -> None:
    """Take note of how it ended: asyncio complains of failures that nobody saw, and later batches may fail unseen."""
    if not task.cancelled():
        task.exception()
