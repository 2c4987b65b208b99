"""The client without `await`: from threads, from inside a loop, and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from bench.errors import AskedWrongly, ClientError, Closed, Refused
from bench.sync import Client, LoopThread
from tests.bench.fake_server import BUNDLE, Request, cascade, image, refusal, reply, serving_in_thread


async def whole(request: Request) -> bytes:
    """What a server does, health checks included."""
    if request.path.startswith("/health/"):
        return reply({"status": request.path.rpartition("/")[2]})
    return await cascade(request)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_in_thread(whole) as url:
        yield url


def threads_of_clients() -> int:
    return sum(thread.name == "rescade-client" for thread in threading.enumerate())


def test_every_question_has_an_answer(url: str) -> None:
    with Client(url, api_key="secret") as client:
        client.wait_until_ready(10)
        assert client.ready()
        assert client.health().status == "live"
        assert client.bundle().name == BUNDLE["name"]
        assert client.predict(image("dog"), threshold=0.1).best.label == "dog"


def test_many_threads_share_one_client(url: str) -> None:
    labels = ["cat", "dog"] * 20
    with Client(url, connections=4) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda label: client.predict(image(label)), labels))
    assert [answer.best.label for answer in answers] == labels


async def test_it_works_where_a_loop_runs_already(url: str) -> None:
    with Client(url) as client:
        assert client.predict(image("dog")).best.label == "dog"


def test_many_images_are_read_in_the_callers_thread_and_answered_in_order(url: str) -> None:
    here, readers = threading.current_thread(), set()

    def images() -> Iterator[bytes]:
        for label in ("cat", "dog", "dog", "cat"):
            readers.add(threading.current_thread())
            yield image(label)

    with Client(url) as client:
        found = [found.label for found in client.predict_many(images(), batch_size=1, concurrency=3)]
    assert (found, readers) == (["cat", "dog", "dog", "cat"], {here})


def test_many_images_may_be_left_in_the_middle(url: str) -> None:
    with Client(url) as client:
        found = client.predict_many([image()] * 100, batch_size=1)
        assert next(found).label == "cat"
        found.close()  # type: ignore[attr-defined]
        assert client.ready()


def test_errors_arrive_as_they_are() -> None:
    async def refuse(request: Request) -> bytes:
        return refusal(422, "bad_image", "that is no image")

    with serving_in_thread(refuse) as url, Client(url) as client:
        with pytest.raises(Refused, match="that is no image"):
            client.predict(b"x")
        with pytest.raises(AskedWrongly):
            client.predict([])


def test_a_closed_client_says_so_and_may_be_closed_again(url: str) -> None:
    client = Client(url)
    client.close()
    client.close()
    with pytest.raises(Closed):
        client.predict(image())
    assert threads_of_clients() == 0


def test_closing_ends_what_other_threads_wait_for() -> None:
    asked, failures = threading.Event(), []

    async def never(request: Request) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    def ask(client: Client) -> None:
        try:
            client.predict(b"x")
        except ClientError as failure:
            failures.append(type(failure))

    with serving_in_thread(never) as url:
        client = Client(url)
        thread = threading.Thread(target=ask, args=(client,))
        thread.start()
        assert asked.wait(10)
        client.close()
        thread.join(10)
    assert failures == [Closed]


def test_a_forgotten_thread_ends_by_itself() -> None:
    thread = LoopThread()
    inner = thread._thread
    del thread
    gc.collect()
    inner.join(10)
    assert not inner.is_alive()


def test_whoever_is_interrupted_gives_up_the_work() -> None:
    class Interrupted(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            raise KeyboardInterrupt

    work = Interrupted()
    with contextlib.closing(LoopThread()) as thread, pytest.raises(KeyboardInterrupt):
        thread.finish(work)
    assert work.cancelled()


def test_a_client_that_makes_no_sense_starts_no_thread() -> None:
    with pytest.raises(AskedWrongly):
        Client("ftp://here")
    assert threads_of_clients() == 0
