"""What a load generator asks with: one image a request, each sent once, one deadline over all of it.

    async with Asker(parse("http://127.0.0.1:8000"), connections=8, timeout_s=5) as asker:
        answer = await asker.predict(image, "image/jpeg", threshold=0.8)
        print(answer.best.label, answer.best.stage)

Waiting for a free connection, connecting, sending and receiving all count against the deadline. Nothing is repeated or
waited for beyond that: what a user's client would mend is what a measurement has to see.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Self

from bench.address import Address, parse
from bench.answers import Answer, BundleInfo, read, read_answer
from bench.connection import Response
from bench.errors import TimedOut
from bench.pool import Pool
from bench.request import BINARY, encode, predict_target


class Asker:
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
        self._pool = Pool(self.address, connections=connections, clock=clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop all idle connections."""
        await self._pool.close()

    async def predict(
        self,
        image: bytes,
        content_type: str = BINARY,
        *,
        threshold: float | None = None,
        max_stage: int | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
        deadline_ms: float | None = None,
    ) -> Answer:
        """Ask for the class of one encoded image.

        Args:
            image: the bytes of an image file.
            content_type: its media type.
            threshold: energy to be exceeded; default the server's own.
            max_stage: last stage that may run; default all.
            top_k: how many of the best classes to list; default the server's own.
            timeout_s: deadline from now, seconds; default the asker's.
            deadline_ms: what the server is told of a deadline, milliseconds; default nothing.

        Raises:
            ClientError: one of its kinds; see `bench.errors`.
        """
        target = predict_target({"threshold": threshold, "max_stage": max_stage, "top_k": top_k})
        headers = "" if deadline_ms is None else f"X-Deadline-Ms: {deadline_ms:g}\r\n"
        request = encode(self.address, "POST", target, image, content_type, headers)
        return read_answer(await self._send(request, timeout_s))

    async def bundle(self, *, timeout_s: float | None = None) -> BundleInfo:
        """Ask what the server serves.

        Raises:
            ClientError: one of its kinds; `Refused` or `BadAnswer` where the server has no such route.
        """
        response = await self._send(encode(self.address, "GET", "/bundle"), timeout_s)
        return read(BundleInfo, response, "GET /bundle")

    async def _send(self, request: bytes, timeout_s: float | None) -> Response:
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._pool.exchange(request)
        except TimeoutError as error:
            raise TimedOut(f"no answer from {self.address} within {limit:.3g} s") from error
