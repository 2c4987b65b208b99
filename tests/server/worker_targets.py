"""What a worker may do to its parent, short of serving: each is started in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from server.commands import Commit, Leaving, Prepare, Up
from server.door import Place
from server.line import Line
from server.settings import ServerSettings


def speak(place: Place, hear: Callable[[Any], dict[tuple[str, str], str]], last_words: bool = False) -> None:
    """Say `Up` and answer commands, until the parent is gone."""

    async def say() -> None:
        gone = asyncio.Event()

        async def handle(command: Any) -> dict[tuple[str, str], str]:
            return hear(command)

        line = Line(place.pipe, handle, gone.set)
        if last_words:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        await line.call(Up())
        if last_words:
            await line.call(Leaving())
        await gone.wait()

    asyncio.run(say())


def placed(settings: ServerSettings, place: Place) -> None:
    """Write down the core it was given, then be steady."""
    (settings.bundle[0] / str(place.core)).touch()
    steady(settings, place)


def steady(settings: ServerSettings, place: Place) -> None:
    """Get ready, and wait to be ended."""
    speak(place, lambda command: {})


def unlucky(settings: ServerSettings, place: Place) -> None:
    """Say why it cannot start."""
    speak(place, lambda command: {("cat", "1"): "no luck today"} if isinstance(command, Prepare) else {})


def mute(settings: ServerSettings, place: Place) -> None:
    """End before it is ready, without a word."""
    os._exit(7)


def replaced(settings: ServerSettings, place: Place) -> None:
    """Die once after getting ready; the second of them ends the parent."""

    def hear(command: Any) -> dict[tuple[str, str], str]:
        if isinstance(command, Commit):
            try:
                settings.bundle[0].mkdir()
            except FileExistsError:
                os.kill(os.getppid(), signal.SIGTERM)
            else:
                os._exit(9)
        return {}

    speak(place, hear)


def late(settings: ServerSettings, place: Place) -> None:
    """Two of them get ready and one of those dies; the third does not get ready, and the fourth ends the parent."""
    folder = settings.bundle[0]
    number = next(number for number in range(9) if not exists(folder, number))
    if number == 2:
        os._exit(7)

    def hear(command: Any) -> dict[tuple[str, str], str]:
        if isinstance(command, Commit) and number == 3:
            os.kill(os.getppid(), signal.SIGTERM)
        elif isinstance(command, Commit) and number == 0:
            asyncio.get_running_loop().call_later(0.3, os._exit, 9)
        return {}

    speak(place, hear)


def exists(folder: Any, number: int) -> bool:
    """Whether this number is taken; if not, it is now."""
    try:
        (folder / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def stubborn(settings: ServerSettings, place: Place) -> None:
    """Get ready, and take no notice of being told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    speak(place, lambda command: {})


def leaving(settings: ServerSettings, place: Place) -> None:
    """Say that it ends, and stay until it is killed."""
    speak(place, lambda command: {}, last_words=True)
