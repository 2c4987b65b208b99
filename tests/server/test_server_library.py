"""Which bundles are on the disk, what has changed, and who keeps a name when two want it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cascade.errors import BundleError, Conflict, NotFound
from server.library import Library, Plan, find, identity, natural
from tests.builders import write_tiny_bundle


def test_versions_are_in_natural_order() -> None:
    versions = ["10", "9", "1.10", "1.9", "v2", "v10", "01", "1", "2024-rc"]
    assert sorted(versions, key=natural) == ["01", "1", "1.9", "1.10", "9", "10", "2024-rc", "v2", "v10"]


def test_a_path_may_be_a_bundle_a_folder_of_them_or_of_their_versions(tmp_path: Path) -> None:
    for place in ("one", "many/b", "many/a", "many/.being-written", "versions/c/2", "versions/c/10"):
        write_tiny_bundle(tmp_path / place)
    (tmp_path / "many" / "empty" / "deep" / "deeper").mkdir(parents=True)
    found = find([tmp_path / "versions", tmp_path / "one", tmp_path / "many", tmp_path / "many" / "a"])
    names = [str(folder.relative_to(tmp_path)) for folder in found]
    assert names == ["versions/c/2", "versions/c/10", "one", "many/a", "many/b"]


def test_a_path_without_bundles_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"manifest.json: cannot read {tmp_path}/nowhere/manifest.json"):
        Library([tmp_path / "nowhere"]).open()


def test_two_folders_with_the_same_name_and_version_are_an_error_that_names_both(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_tiny_bundle(tmp_path / place)
    with pytest.raises(BundleError, match=rf"tiny version 1 is in {tmp_path}/a and {tmp_path}/b: give one"):
        Library([tmp_path]).open()


def identities(plan: Plan) -> list[str]:
    return [":".join(identity(bundle)) for bundle in plan.bundles]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Of cat 1 in `a` and dog 1 in `b`."""
    write_tiny_bundle(tmp_path / "a", name="cat")
    write_tiny_bundle(tmp_path / "b", name="dog")
    library = Library([tmp_path])
    library.open()
    return library


def test_where_nothing_has_changed_there_is_nothing_to_do(library: Library) -> None:
    plan = library.scan()
    assert (identities(plan), plan.fresh, plan.gone, plan.broken) == (["cat:1", "dog:1"], (), (), ())


def test_what_is_new_changed_or_gone_is_told(library: Library, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a", name="cat", threshold=0.7)
    shutil.rmtree(tmp_path / "b")
    write_tiny_bundle(tmp_path / "c", name="cat", version="2")
    plan = library.scan()
    assert identities(plan) == ["cat:1", "cat:2"]
    assert [bundle.manifest.exit.threshold for bundle in plan.fresh] == [0.7, 0.6]
    assert plan.gone == (("dog", "1"),)


def test_a_plan_changes_nothing_until_it_is_carried_out(library: Library, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "c", name="cat", version="2")
    plan = library.scan()
    assert len(library.scan().fresh) == 1
    library.accept(plan)
    assert library.scan().fresh == ()


def test_a_broken_folder_keeps_what_it_had(library: Library, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    (tmp_path / "a" / "stage1.onnx").write_bytes(b"cut")
    plan = library.scan()
    assert (identities(plan), plan.fresh, plan.gone) == (["cat:1", "dog:1"], (), ())
    assert [(each.name, each.version) for each in plan.broken] == [("cat", "2")]
    assert "stages[1].sha256" in plan.broken[0].fault


def test_a_bundle_that_turns_out_not_to_work_leaves_the_old_one(library: Library, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    plan = library.without(library.scan(), {("cat", "2"): "it crashes"})
    assert (identities(plan), plan.fresh) == (["cat:1", "dog:1"], ())
    assert [each.fault for each in plan.broken] == ["it crashes"]


def test_of_two_with_the_same_name_and_version_the_one_that_had_it_keeps_it(library: Library, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a", name="dog")
    plan = library.scan()
    assert identities(plan) == ["cat:1", "dog:1"]
    assert [each.folder.name for each in plan.broken] == ["a"]


def test_what_is_taken_out_stays_out_until_it_is_loaded_by_name(library: Library, tmp_path: Path) -> None:
    library.accept(library.unload("dog"))
    assert identities(library.scan()) == ["cat:1"]
    write_tiny_bundle(tmp_path / "a", name="cat", version="2")
    plan = library.load("dog")
    assert identities(plan) == ["cat:1", "dog:1"]
    assert [identity(bundle) for bundle in plan.fresh] == [("dog", "1")]


def test_loading_one_name_leaves_the_others_alone(library: Library, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "a")
    write_tiny_bundle(tmp_path / "b", name="dog", version="2")
    write_tiny_bundle(tmp_path / "c", name="fox")
    assert identities(library.load("dog")) == ["cat:1", "dog:2"]


def test_a_name_nobody_has_can_be_neither_loaded_nor_taken_out(library: Library) -> None:
    for act in (library.load, library.unload):
        with pytest.raises(NotFound, match="'fox'"):
            act("fox")


def test_the_last_one_is_not_taken_out(library: Library, tmp_path: Path) -> None:
    library.accept(library.unload("dog"))
    with pytest.raises(Conflict, match="nothing would be left"):
        library.unload("cat")
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "c" / "stage0.onnx").unlink()
    with pytest.raises(Conflict, match=r"nothing would be left.*stages\[0\].file"):
        library.scan()
