"""Who decides what is served: one thing after another, in two phases, whatever a process does meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from cascade.errors import Conflict, NotFound, NotReady, ServiceError
from server import control as control_module
from server.commands import Command, Commit, Known, Override, Prepare, Row
from server.control import Control, Coordinator
from server.library import Identity, Library, identity
from tests.builders import write_tiny_bundle


class FakeMember:
    """A process that does what it is told, unless it is told otherwise.

    Args:
        faults: of bundles it cannot open.
        hangs_at: the kind of command it never comes back from.
        dies_at: the kind of command it does not survive.
    """

    def __init__(
        self,
        faults: dict[Identity, str] | None = None,
        hangs_at: type | None = None,
        dies_at: type | None = None,
    ) -> None:
        self.faults, self.hangs_at, self.dies_at = faults or {}, hangs_at, dies_at
        self.heard: list[str] = []
        self.served: tuple[Identity, ...] = ()
        self.overrides: dict[str, Override] = {}
        self.given_up = False

    async def carry_out(self, command: Command) -> dict[Identity, str]:
        self.heard.append(type(command).__name__)
        if self.hangs_at is type(command):
            await asyncio.Event().wait()
        if self.dies_at is type(command):
            raise ServiceError("gone")
        if isinstance(command, Commit):
            self.served, self.overrides = command.order, dict(command.overrides)
        there = map(identity, command.bundles) if isinstance(command, Prepare) else ()
        return {each: self.faults[each] for each in there if each in self.faults}

    def give_up(self) -> None:
        self.given_up = True


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Of cat 1 in `a` and dog 1 in `b`."""
    write_tiny_bundle(tmp_path / "a", name="cat")
    write_tiny_bundle(tmp_path / "b", name="dog")
    library = Library([tmp_path])
    library.open()
    return library


def deciding(library: Library, *members: FakeMember, patience_s: float = 10) -> tuple[Coordinator, Control]:
    coordinator = Coordinator(library, patience_s, members)
    return coordinator, Control(coordinator.carry_out, lambda name, version: name != "dog")


async def test_what_is_new_is_prepared_by_all_before_anybody_puts_it_in(library: Library, tmp_path: Path) -> None:
    members = FakeMember(), FakeMember(), FakeMember()
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    rows = await deciding(library, *members)[1].reload()
    assert rows == (Row("cat", "2", "loaded"), Row("dog", "1", "kept"), Row("cat", "1", "removed"))
    assert [member.heard for member in members] == [["Prepare", "Commit"]] * 3
    assert [member.served for member in members] == [(("cat", "2"), ("dog", "1"))] * 3


async def test_where_nothing_has_changed_nobody_is_told(library: Library) -> None:
    member = FakeMember()
    rows = await deciding(library, member)[1].reload()
    assert [row.result for row in rows] == ["kept", "kept"]
    assert member.heard == []


async def test_what_fails_in_one_process_is_broken_for_all_and_the_old_one_stays(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = FakeMember(), FakeMember(faults={("cat", "2"): "no room"})
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    rows = await deciding(library, *members)[1].reload()
    assert rows[-1] == Row("cat", "2", "broken", "no room", str(tmp_path / "a"))
    assert [member.heard for member in members] == [["Prepare", "Abort"]] * 2
    assert library.bundles[0].manifest.version == "1"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["bundle not loaded"]


async def test_where_the_only_new_one_fails_and_the_rest_is_gone_nothing_changes(
    library: Library, tmp_path: Path
) -> None:
    member = FakeMember(faults={("fox", "1"): "no room"})
    for place in ("a", "b"):
        shutil.rmtree(tmp_path / place)
    write_tiny_bundle(tmp_path / "c", name="fox")
    with pytest.raises(Conflict, match="no room"):
        await deciding(library, member, FakeMember())[1].reload()
    assert member.heard == ["Prepare", "Abort"]


async def test_one_that_fails_does_not_keep_another_out(library: Library, tmp_path: Path) -> None:
    members = FakeMember(faults={("cat", "2"): "no room"}), FakeMember()
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    write_tiny_bundle(tmp_path / "b", name="dog", version="2")
    await deciding(library, *members)[1].reload()
    assert [member.served for member in members] == [(("cat", "1"), ("dog", "2"))] * 2


@pytest.mark.parametrize("trouble", ["hangs_at", "dies_at"])
async def test_a_bundle_that_brings_down_the_first_process_is_not_given_to_the_others(
    trouble: str, library: Library, tmp_path: Path
) -> None:
    first, second = FakeMember(**{trouble: Prepare}), FakeMember()  # type: ignore[arg-type]
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    rows = await deciding(library, first, second, patience_s=0.01)[1].reload()
    assert "ended, or hung" in rows[-1].reason
    assert (first.given_up, second.given_up, second.heard) == (True, False, ["Abort"])


@pytest.mark.parametrize("stage", [Prepare, Commit])
async def test_a_process_that_hangs_later_is_given_up_and_the_others_go_on(
    stage: type, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "COMMIT_S", 0.05)
    first, second = FakeMember(), FakeMember(hangs_at=stage)
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    rows = await deciding(library, first, second, patience_s=0.05)[1].reload()
    assert rows[0] == Row("cat", "2", "loaded")
    assert (first.served[0], second.given_up) == (("cat", "2"), True)


async def test_without_a_process_nothing_can_be_loaded(library: Library, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    with pytest.raises(NotReady, match="try again"):
        await deciding(library)[1].reload()


async def test_the_last_bundle_is_not_taken_away_and_the_log_says_so(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = FakeMember()
    for place in ("a", "b"):
        shutil.rmtree(tmp_path / place)
    with pytest.raises(Conflict):
        await deciding(library, member)[1].reload()
    assert member.heard == []
    assert [record.getMessage() for record in caplog.records] == ["nothing changed"]


async def test_a_name_is_taken_out_and_loaded_again(library: Library) -> None:
    member = FakeMember()
    _, control = deciding(library, member)
    await control.unload("cat")
    assert member.served == (("dog", "1"),)
    assert await control.index() == [Known("dog", "1", "LOADING"), Known("cat", "", "UNAVAILABLE", "unloaded")]
    await control.load("cat")
    assert set(member.served) == {("cat", "1"), ("dog", "1")}


async def test_the_index_knows_what_is_broken(library: Library, tmp_path: Path) -> None:
    _, control = deciding(library, FakeMember())
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    (tmp_path / "a" / "stage0.onnx").unlink()
    (tmp_path / "b" / "stage0.onnx").unlink()
    await control.reload()
    known = await control.index()
    assert [(each.name, each.version, each.state) for each in known] == [
        ("cat", "1", "READY"),
        ("dog", "1", "LOADING"),
        ("cat", "2", "UNAVAILABLE"),
    ]
    assert "stage0.onnx" in known[2].reason


async def test_controls_change_one_by_one_and_outlive_a_reload(library: Library, tmp_path: Path) -> None:
    member = FakeMember()
    _, control = deciding(library, member)
    assert await control.set_controls("cat", {"threshold": 0.8}) == (Override(), Override(0.8))
    assert await control.set_controls("cat", {"max_stage": 1}) == (Override(0.8), Override(0.8, 1))
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    await control.reload()
    assert member.overrides == {"cat": Override(0.8, 1)}
    await control.set_controls("cat", {"threshold": None})
    assert member.overrides == {"cat": Override(None, 1)}


async def test_a_name_that_is_not_served_has_no_controls(library: Library) -> None:
    with pytest.raises(NotFound, match="'fox'"):
        await deciding(library, FakeMember())[1].set_controls("fox", {"threshold": 0.8})


async def test_a_newcomer_is_brought_to_what_was_agreed(library: Library) -> None:
    coordinator, control = deciding(library, FakeMember())
    await control.set_controls("cat", {"threshold": 0.8})
    newcomer = FakeMember()
    assert await coordinator.welcome(newcomer) is None
    assert (newcomer.served, newcomer.overrides) == ((("cat", "1"), ("dog", "1")), {"cat": Override(0.8)})
    await control.set_controls("dog", {"threshold": 0.7})
    assert newcomer.overrides["dog"] == Override(0.7)


async def test_a_newcomer_gets_what_was_agreed_while_it_prepared(library: Library) -> None:
    class Slow(FakeMember):
        async def carry_out(self, command: Command) -> dict[Identity, str]:
            await asyncio.sleep(0)
            return await super().carry_out(command)

    coordinator, control = deciding(library, FakeMember())
    newcomer = Slow()
    await asyncio.gather(coordinator.welcome(newcomer), control.set_controls("cat", {"threshold": 0.8}))
    assert newcomer.overrides == {"cat": Override(0.8)}
    assert newcomer.heard == ["Prepare", "Commit"] * 2


async def test_a_process_that_is_gone_is_told_nothing(library: Library) -> None:
    coordinator, control = deciding(library, gone := FakeMember())
    coordinator.dismiss(gone)
    await control.set_controls("cat", {"threshold": 0.8})
    assert gone.heard == []


@pytest.mark.parametrize(
    ("newcomer", "reason"),
    [
        (FakeMember(faults={("cat", "1"): "no room"}), "no room"),
        (FakeMember(dies_at=Prepare), "ended, or hung"),
        (FakeMember(dies_at=Commit), "ended, or hung"),
    ],
)
async def test_a_newcomer_that_cannot_serve_is_none_of_them(
    newcomer: FakeMember, reason: str, library: Library
) -> None:
    coordinator, control = deciding(library, FakeMember())
    assert reason in str(await coordinator.welcome(newcomer))
    newcomer.heard.clear()
    coordinator.dismiss(newcomer)
    await control.set_controls("cat", {"threshold": 0.8})
    assert newcomer.heard == []


async def test_commands_are_carried_out_one_after_another(library: Library) -> None:
    opened, busy = asyncio.Event(), asyncio.Event()

    class Slow(FakeMember):
        async def carry_out(self, command: Command) -> dict[Identity, str]:
            busy.set()
            await opened.wait()
            return await super().carry_out(command)

    _, control = deciding(library, slow := Slow())
    first = asyncio.create_task(control.set_controls("cat", {"threshold": 0.8}))
    await busy.wait()
    second = asyncio.create_task(control.set_controls("cat", {"threshold": 0.9}))
    await asyncio.sleep(0)
    opened.set()
    assert (await first)[1] == (await second)[0] == Override(0.8)
    assert slow.overrides["cat"] == Override(0.9)
