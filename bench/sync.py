"""The same client without `await`: a loop of its own runs in a thread of its own, and every call is a visit there.

So it may be used from many threads at once, and from a program whose own thread runs an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing
from typing import Any, Self, TypedDict, TypeVar, Unpack

from bench.answers import Answer, BundleInfo, Health, Prediction
from bench.batches import batches, in_flight
from bench.client import AsyncClient, Effects
from bench.errors import Closed
from bench.question import Image, Images, Options
from bench.retry import Retry

Result = TypeVar("Result")


class Settings(TypedDict, total=False):
    """What an `AsyncClient` takes beside the address; the defaults are its own."""

    api_key: str | None
    connections: int
    timeout_s: float
    connect_timeout_s: float
    keep_alive_s: float
    verify: bool | ssl.SSLContext
    retry: Retry
    effects: Effects


class LoopThread:
    """A thread that runs an event loop until it is closed, or until nobody holds this object any more."""

    def __init__(self) -> None:
        self._loop, ends = asyncio.new_event_loop(), asyncio.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=_serve, args=(self._loop, ends), name="rescade-client", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._loop.call_soon_threadsafe, ends.set)

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start work there.

        Raises:
            Closed: there is no such thread any more.
        """
        with self._lock:
            if self._end.alive:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise Closed("the client is closed")

    def finish(self, future: Future[Result]) -> Result:
        """Wait for work that was started; whoever is interrupted while waiting gives it up.

        Raises:
            Closed: the thread was closed meanwhile.
        """
        try:
            return future.result()
        except CancelledError as error:
            raise Closed("the client was closed before the answer came") from error
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End what is under way, the loop and the thread."""
        with self._lock:
            self._end()
        self._thread.join()


class Client:
    """Asks one server, from any thread.

        with Client("http://127.0.0.1:8000") as client:
            print(client.predict("cat.png").best.label)

    Args:
        url: base address, http or https.
        settings: as of `bench.client.AsyncClient`.

    Raises:
        AskedWrongly: the address or a setting makes no sense.
    """

    def __init__(self, url: str, **settings: Unpack[Settings]) -> None:
        self._client = AsyncClient(url, **settings)
        self._thread = LoopThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections; calls under way in other threads end with `Closed`."""
        with contextlib.suppress(Closed):
            self._ask(self._client.close())
        self._thread.close()

    def predict(self, images: Images, **options: Unpack[Options]) -> Answer:
        """Ask what is on one image, or on several.

        Args:
            images: bytes of an image file, a path, a (3, H, W) array of ready inputs; or several of one kind, or an
                (N, 3, H, W) array.
            options: see `bench.question.Options`.

        Returns:
            One prediction an image, in order.

        Raises:
            ClientError: one of its kinds; see `bench.errors`.
            AskedWrongly: an image or an option makes no sense.
        """
        return self._ask(self._client.predict(images, **options))

    def predict_many(
        self, images: Iterable[Image], *, batch_size: int = 8, concurrency: int = 4, **options: Unpack[Options]
    ) -> Iterator[Prediction]:
        """Ask about any number of images, some at a time.

        Args:
            images: read in this thread, and no further ahead than is needed.
            batch_size: images in one request.
            concurrency: requests at once.
            options: of each request; see `bench.question.Options`.

        Yields:
            One prediction an image, in order.

        Raises:
            ClientError: a request failed; the predictions before it have been given.
            AskedWrongly: an image or an option makes no sense.
        """

        def start(batch: list[Image]) -> Future[Answer]:
            return self._thread.start(self._client.predict(batch, **options))

        with closing(in_flight(batches(images, batch_size), start, concurrency)) as futures:
            for future in futures:
                yield from self._thread.finish(future).predictions

    def health(self) -> Health:
        """Ask whether the server answers at all.

        Raises:
            ClientError: it does not.
        """
        return self._ask(self._client.health())

    def ready(self) -> bool:
        """Ask whether the server would answer a question: all networks are warm, and it is not about to stop.

        Raises:
            ClientError: it says neither yes nor no.
        """
        return self._ask(self._client.ready())

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the server is ready; until then it may be unreachable.

        Raises:
            TimedOut: it was not, for so long.
            ClientError: something answers that is no such server.
        """
        self._ask(self._client.wait_until_ready(timeout_s))

    def bundle(self) -> BundleInfo:
        """Ask what the server serves.

        Raises:
            ClientError: one of its kinds; see `bench.errors`.
        """
        return self._ask(self._client.bundle())

    def _ask(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._thread.finish(self._thread.start(work))


def _serve(loop: asyncio.AbstractEventLoop, ends: asyncio.Event) -> None:
    """Run the loop; what is left when it ends is cancelled."""

    async def until_the_end() -> None:
        await ends.wait()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(until_the_end())
