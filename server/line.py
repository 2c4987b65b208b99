"""A pipe between two processes that neither of them ever waits for.

Both ends may call the other: a call is a message that is answered, once its handler has made up its mind. Two threads
read and write, so that a large message or a hung process holds up nobody's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from cascade.errors import CascadeError, Conflict, NotFound, NotReady, ServiceError

logger = logging.getLogger(__name__)

CARRIED = (Conflict, NotFound, NotReady, ServiceError)  # errors of one argument, which a pipe can carry


class Lost(ServiceError):
    """The other end is gone."""

    code = "lost"


@dataclass(frozen=True)
class _Call:
    number: int
    command: object


@dataclass(frozen=True)
class _Answer:
    number: int
    value: object
    error: CascadeError | None


class Line:
    """One end, on the running event loop.

    Args:
        pipe: both ways; closed once the other end is.
        handle: answers the other end's calls.
        lose: called once the other end is gone.
    """

    def __init__(
        self, pipe: Connection, handle: Callable[[Any], Awaitable[object]], lose: Callable[[], object]
    ) -> None:
        self._pipe, self._handle, self._lose = pipe, handle, lose
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._lost = False
        self._out: SimpleQueue[_Call | _Answer | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="line-out", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="line-in", daemon=True).start()

    async def call(self, command: object) -> Any:
        """Have the other end do something.

        Raises:
            Lost: it is gone.
            CascadeError: it refused.
        """
        if self._lost:
            raise Lost("the process that was asked is gone: try again")
        number = next(self._numbers)
        self._calls[number] = self._loop.create_future()
        self._out.put(_Call(number, command))
        try:
            return await self._calls[number]
        finally:
            del self._calls[number]

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._out.get()) is not None:
                self._pipe.send(message)

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._tell(self._heard, self._pipe.recv())
        self._out.put(None)
        self._writer.join()
        self._pipe.close()
        self._tell(self._hung_up)

    def _tell(self, act: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody listens any more
            self._loop.call_soon_threadsafe(act, *arguments)

    def _heard(self, message: _Call | _Answer) -> None:
        if isinstance(message, _Call):
            task = self._loop.create_task(self._answer(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        waiting = self._calls.get(message.number)
        if waiting is None or waiting.done():
            return
        if message.error is not None:
            waiting.set_exception(message.error)
        else:
            waiting.set_result(message.value)

    async def _answer(self, call: _Call) -> None:
        value, error = None, None
        try:
            value = await self._handle(call.command)
        except CARRIED as refusal:
            error = type(refusal)(str(refusal))
        except Exception:
            logger.exception("command failed", extra={"fields": {"command": type(call.command).__name__}})
            error = ServiceError("the command failed; the log says why")
        self._out.put(_Answer(call.number, value, error))

    def _hung_up(self) -> None:
        self._lost = True
        for waiting in [each for each in self._calls.values() if not each.done()]:
            waiting.set_exception(Lost("the process that was asked is gone: try again"))
        self._lose()
