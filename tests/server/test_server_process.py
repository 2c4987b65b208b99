"""One server process, in this one: it says when it is ready, answers, and drains on a signal."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from server.app import create_app
from server.port import PUBLIC, listen, listening, url_of
from server.process import Process, serve
from tests.builders import FakeRuntime
from tests.server.harness import settings_for_tests

SURE = np.array([[[9.0, 0.0]]])
ONE = {"inputs": FakeRuntime.images([0]).tolist()}


def end_us() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def serve_and_ask(runtime: FakeRuntime, ask: Callable[[str], None], **settings: float) -> Exception | None:
    """Serve in this thread, and ask from another one that must end the server."""
    given = settings_for_tests(port=0, **settings)
    with listening(given) as ports:
        asker = threading.Thread(target=ask, args=(url_of(ports[PUBLIC]),))
        failure = serve(given, [runtime], ports, asker.start)
        asker.join()
    return failure


def test_it_answers_until_it_is_told_to_stop() -> None:
    answers: list[httpx.Response] = []
    handler = signal.getsignal(signal.SIGTERM)

    def ask(url: str) -> None:
        answers.append(httpx.post(f"{url}/predict", json=ONE))
        end_us()

    assert serve_and_ask(FakeRuntime(SURE), ask) is None
    assert answers[0].status_code == 200
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_is_in_hand_is_answered_after_the_signal() -> None:
    entered, held = threading.Event(), threading.Event()
    statuses: list[int] = []

    def before(stage: int) -> None:
        entered.set()
        held.wait(10)

    def ask(url: str) -> None:
        asking = threading.Thread(target=lambda: statuses.append(httpx.post(f"{url}/predict", json=ONE).status_code))
        asking.start()
        entered.wait(10)
        end_us()
        threading.Timer(0.3, held.set).start()
        asking.join()

    assert serve_and_ask(FakeRuntime(SURE, before), ask) is None
    assert statuses == [200]


def test_during_the_delay_it_is_not_ready_and_still_answers_and_a_second_signal_stops_it() -> None:
    statuses: list[int] = []

    def ask(url: str) -> None:
        with httpx.Client(base_url=url) as client:
            statuses.append(client.get("/health/ready").status_code)
            end_us()
            while client.get("/health/ready").status_code == 200:
                pass
            statuses.append(client.get("/health/ready").status_code)
            statuses.append(client.post("/predict", json=ONE).status_code)
        end_us()

    assert serve_and_ask(FakeRuntime(SURE), ask, drain_delay_s=60) is None
    assert statuses == [200, 503, 200]


def test_the_delay_ends_by_itself() -> None:
    assert serve_and_ask(FakeRuntime(SURE), lambda _: end_us(), drain_delay_s=0.01) is None


def test_a_warm_up_that_fails_ends_the_process_with_its_reason() -> None:
    runtime = FakeRuntime(SURE, warm=lambda: 1 / 0)
    settings = settings_for_tests(port=0)
    with listening(settings) as ports:
        failure = serve(settings, [runtime], ports, lambda: pytest.fail("it is not ready"))
    assert isinstance(failure, ZeroDivisionError)


def test_a_signal_during_the_warm_up_ends_it_without_a_word() -> None:
    def warm() -> None:
        end_us()
        while not process.should_exit:
            pass

    settings = settings_for_tests(port=0, drain_delay_s=0)
    app = create_app(settings, FakeRuntime(SURE, warm=warm))
    process = Process(app, settings, lambda: pytest.fail("it was told to stop"))
    with listen(settings.host, settings.port) as listener:
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        process.run([listener])
        signal.signal(signal.SIGTERM, before)
    assert process.failure is None


def test_a_signal_before_the_start_ends_it_in_good_order(caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_for_tests(port=0)
    process = Process(create_app(settings, FakeRuntime(SURE)), settings, lambda: None)
    process.hang_up(signal.SIGHUP, None)  # nothing to reload yet
    with listen(settings.host, settings.port) as listener:
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        process.handle_exit(signal.SIGTERM, None)
        process.run([listener])
        signal.signal(signal.SIGTERM, before)
    assert process.started
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_taken_port_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_an_address_of_either_family_is_written_as_a_url() -> None:
    class Six(socket.socket):
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("::1", 80, 0, 0)

    with Six() as six:
        assert url_of(six) == "http://[::1]:80"
