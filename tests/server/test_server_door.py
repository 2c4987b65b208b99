"""The door: connections go to whoever has the fewest, and to another one if he is gone before he took them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from server import door as door_module
from server import taker as taker_module
from server.door import CLOSED, TAKEN, Door, Seat
from server.taker import Taker

KIND = b"p"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


class FakeWorker:
    """Takes connections, and holds them until it is told to let go."""

    def __init__(self) -> None:
        self.seat = Seat()
        self.held: list[socket.socket] = []
        self.taker = Taker(self.seat.theirs, self.seat.counts, self.serve)

    async def serve(self, kind: bytes, connection: socket.socket) -> None:
        assert kind == KIND
        self.held.append(connection)
        self.taker.connections.add(connection)

    def let_go(self) -> None:
        connection = self.held.pop()
        connection.close()
        self.taker.connections.discard(connection)

    def die(self) -> None:
        asyncio.get_running_loop().remove_reader(self.seat.theirs)
        self.seat.theirs.close()


def knock(listener: socket.socket, times: int = 1) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(times)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is no event to anybody else
            await asyncio.sleep(0.001)


def end(*things: socket.socket | FakeWorker) -> None:
    for thing in things:
        if isinstance(thing, FakeWorker):
            thing.die()
            end(*thing.held)
        else:
            thing.close()


async def test_eight_connections_over_two_workers_are_four_and_four(listener: socket.socket) -> None:
    door, one, two = Door({KIND: listener}), FakeWorker(), FakeWorker()
    door.add(one.seat)
    door.add(two.seat)
    clients = knock(listener, 8)
    await until(lambda: len(one.held) + len(two.held) == 8)
    assert (len(one.held), len(two.held)) == (4, 4)
    door.close()
    end(*clients, one, two)
    door.drop(one.seat)
    door.drop(two.seat)


async def test_a_connection_goes_where_one_has_closed(listener: socket.socket) -> None:
    door, one, two = Door({KIND: listener}), FakeWorker(), FakeWorker()
    door.add(one.seat)
    door.add(two.seat)
    clients = knock(listener, 4)
    await until(lambda: len(one.held) == len(two.held) == 2)
    two.let_go()
    clients += knock(listener)
    await until(lambda: len(two.held) == 2)
    assert (len(one.held), list(two.seat.counts)) == (2, [3, 1])
    end(*clients, one, two)
    door.drop(one.seat)
    door.drop(two.seat)
    door.close()


async def test_the_parents_copy_is_closed_once_the_worker_has_taken_the_connection(listener: socket.socket) -> None:
    door, worker = Door({KIND: listener}), FakeWorker()
    door.add(worker.seat)
    [client] = knock(listener)
    await until(lambda: len(worker.held) == 1)
    worker.let_go()
    client.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    end(client, worker)
    door.drop(worker.seat)
    door.close()


async def test_what_a_dead_worker_had_not_taken_goes_to_another(listener: socket.socket) -> None:
    door, idle, worker = Door({KIND: listener}), Seat(), FakeWorker()
    door.add(idle)
    [client] = knock(listener)
    await until(lambda: idle.load[0] == 1)
    idle.theirs.close()
    for _ in range(5):  # rounds of the loop, in which it is found dead
        await asyncio.sleep(0)
    door.add(worker.seat)
    door.drop(idle)
    await until(lambda: len(worker.held) == 1)
    end(client, worker)
    door.drop(worker.seat)
    door.close()


async def test_a_worker_that_is_found_dead_is_passed_over(listener: socket.socket) -> None:
    door, dead, worker = Door({KIND: listener}), Seat(), FakeWorker()
    dead.theirs.close()
    door.add(dead)
    door.add(worker.seat)
    clients = knock(listener, 2)
    await until(lambda: len(worker.held) == 2)
    end(*clients, worker)
    door.drop(dead)
    door.drop(worker.seat)
    door.close()


async def test_connections_wait_until_somebody_is_there_and_warm_workers_go_first(listener: socket.socket) -> None:
    door, cold, warm = Door({KIND: listener}), FakeWorker(), FakeWorker()
    clients = knock(listener)
    door.add(cold.seat)
    await until(lambda: len(cold.held) == 1)
    warm.seat.ready = True
    door.add(warm.seat)
    door.add(warm.seat)
    clients += knock(listener, 3)
    await until(lambda: len(warm.held) == 3)
    assert len(cold.held) == 1
    end(*clients, cold, warm)
    door.drop(cold.seat)
    door.drop(warm.seat)
    door.close()


async def test_a_worker_that_retires_takes_what_it_was_handed_and_nothing_more(listener: socket.socket) -> None:
    door, old, new = Door({KIND: listener}), FakeWorker(), FakeWorker()
    door.add(old.seat)
    door.add(new.seat)
    clients = knock(listener, 2)
    await until(lambda: len(old.held) == len(new.held) == 1)
    door.retire(old.seat)
    door.retire(old.seat)
    clients += knock(listener, 2)
    await until(lambda: len(new.held) == 3 and old.taker.finished.is_set())
    assert len(old.held) == 1
    end(*clients, old, new)
    door.drop(old.seat)
    door.drop(new.seat)
    door.close()


async def test_what_has_knocked_before_the_door_closes_is_let_in(listener: socket.socket) -> None:
    door, worker = Door({KIND: listener}), FakeWorker()
    door.add(worker.seat)
    clients = knock(listener, 3)
    door.close()
    await until(worker.taker.finished.is_set)
    await until(lambda: len(worker.held) == 3)
    end(*clients, worker)
    door.drop(worker.seat)


async def test_what_nobody_is_left_to_take_is_closed(listener: socket.socket) -> None:
    door = Door({KIND: listener})
    [client] = knock(listener)
    door.close()
    client.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    client.close()


async def test_what_waits_goes_out_when_a_full_worker_has_room_again(listener: socket.socket) -> None:
    door, seat = Door({KIND: listener}), Seat()
    door.add(seat)
    seat.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    clients = knock(listener, 40)
    await until(lambda: len(door._waiting) > 0)
    worker = FakeWorker.__new__(FakeWorker)
    worker.seat, worker.held = seat, []
    worker.taker = Taker(seat.theirs, seat.counts, worker.serve)
    await until(lambda: len(worker.held) == 40)
    end(*clients, worker)
    door.drop(seat)
    door.close()


class Crowded(socket.socket):
    """A port of a process that is out of file descriptors, at first."""

    times = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.times += 1
        if self.times == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_file_descriptors_the_door_rests_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "PAUSE_S", 0.01)
    with Crowded() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        door, worker = Door({KIND: listener}), FakeWorker()
        door.add(worker.seat)
        clients = knock(listener)
        await until(lambda: len(worker.held) == 1)
        end(*clients, worker)
        door.drop(worker.seat)
        door.close()
    assert [record.getMessage() for record in caplog.records] == ["cannot accept"]


async def test_a_worker_without_room_for_a_descriptor_counts_the_connection_as_closed() -> None:
    worker = FakeWorker()
    worker.seat.channel.send(KIND)
    await until(lambda: worker.seat.counts[TAKEN] == 1)
    assert worker.seat.counts[CLOSED] == 1
    end(worker)
    worker.seat.counts[TAKEN] = 0
    worker.seat.leave()


async def test_a_worker_whose_channel_breaks_expects_nothing_more(listener: socket.socket) -> None:
    worker, [client] = FakeWorker(), knock(listener)
    with listener.accept()[0] as connection:
        assert worker.seat.hand(KIND, connection)
    await until(lambda: len(worker.held) == 1)
    worker.seat.channel.close()
    await until(worker.taker.finished.is_set)
    end(client, worker)


async def test_many_at_once_are_let_in_by_and_by(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "AT_ONCE", 2)
    monkeypatch.setattr(taker_module, "AT_ONCE", 2)
    clients = knock(listener, 7)
    door, worker = Door({KIND: listener}), FakeWorker()
    door.add(worker.seat)
    await until(lambda: len(worker.held) == 7)
    end(*clients, worker)
    door.drop(worker.seat)
    door.close()
