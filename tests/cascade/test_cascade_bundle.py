"""A bundle folder: read whole or refused, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.bundle import Bundle, parse, read, read_manifest, sha256, write
from cascade.errors import BundleError
from cascade.manifest import Manifest
from tests.builders import (
    golden_bundle,
    onnx_model,
    tiny_bundle,
    tiny_manifest,
    write_golden_bundle,
    write_tiny_bundle,
)
from tests.cascade.documents import FIGURES, FUSED, MODELS, put


class Disk(dict[str, bytes]):
    """Model files that are handed out; `before` is called each time, with the name."""

    def __init__(self, manifest: Manifest, before: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(zip((stage.file for stage in manifest.stages), MODELS, strict=True))
        self.before = before

    def __getitem__(self, name: str) -> bytes:
        self.before(name)
        return super().__getitem__(name)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good bundle on disk."""
    write_tiny_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def spoil_manifest(folder: Path, path: str, value: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(put(path, value)))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write_tiny_bundle(tmp_path / "bundle")
    assert read(tmp_path / "bundle") == written


def test_everything_a_manifest_can_say_survives_the_disk(tmp_path: Path) -> None:
    document = put("labels", ["猫", "собака", "🐟", 'a "quoted" one'])
    manifest = parse({**document, "calibration": FIGURES, "test": FIGURES})
    write(tmp_path / "bundle", manifest, Disk(manifest))
    assert read(tmp_path / "bundle") == Bundle(manifest, tuple(MODELS))


def test_a_file_in_a_subfolder_is_written_and_read(tmp_path: Path) -> None:
    manifest = parse(put("stages.1.file", "onnx/second.onnx"))
    write(tmp_path / "bundle", manifest, Disk(manifest))
    assert read(tmp_path / "bundle").models == tuple(MODELS)
    assert sorted(contents(tmp_path / "bundle")) == [
        "manifest.json",
        "onnx/second.onnx",
        "stage0.onnx",
        "stage2.onnx",
    ]


def test_a_bundle_can_be_read_through_a_link_to_its_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert read(tmp_path / "link") == read(folder)


def test_a_model_may_be_a_link_that_stays_inside(folder: Path) -> None:
    (folder / "stage0.onnx").rename(folder / "weights.onnx")
    (folder / "stage0.onnx").symlink_to("weights.onnx")
    assert read(folder).models == tuple(MODELS)


def test_a_model_that_is_a_link_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "stage1.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "stage1.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle") as caught:
        read(folder)
    assert caught.value.field == "stages[1].file"


def test_a_folder_that_is_a_link_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "stage0.onnx").rename(tmp_path / "elsewhere" / "stage0.onnx")
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    spoil_manifest(folder, "stages.0.file", "onnx/stage0.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read(folder)


def test_a_link_to_itself_is_refused(folder: Path) -> None:
    (folder / "stage0.onnx").unlink()
    (folder / "stage0.onnx").symlink_to("stage0.onnx")
    with pytest.raises(BundleError) as caught:
        read(folder)
    assert caught.value.field == "stages[0].file"


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    data = bytearray(MODELS[2])
    data[-1] ^= 1
    (folder / "stage2.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="was changed or cut") as caught:
        read(folder)
    assert caught.value.field == "stages[2].sha256"


@pytest.mark.parametrize("size", [0, 1, len(MODELS[1]) - 1])
def test_a_cut_file_is_noticed(folder: Path, size: int) -> None:
    os.truncate(folder / "stage1.onnx", size)
    with pytest.raises(BundleError) as caught:
        read(folder)
    assert caught.value.field == "stages[1].sha256"


def test_swapped_model_files_are_noticed(folder: Path) -> None:
    (folder / "stage0.onnx").write_bytes(MODELS[1])
    (folder / "stage1.onnx").write_bytes(MODELS[0])
    with pytest.raises(BundleError) as caught:
        read(folder)
    assert caught.value.field == "stages[0].sha256"


def test_a_digest_of_something_else_is_noticed(folder: Path) -> None:
    spoil_manifest(folder, "stages.1.sha256", sha256(b"something else"))
    with pytest.raises(BundleError) as caught:
        read(folder)
    assert caught.value.field == "stages[1].sha256"


@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_missing_model_is_named(folder: Path, instead: str) -> None:
    (folder / "stage1.onnx").unlink()
    if instead == "a folder":
        (folder / "stage1.onnx").mkdir()
    with pytest.raises(BundleError, match=r"cannot read 'stage1\.onnx'") as caught:
        read(folder)
    assert caught.value.field == "stages[1].file"


def test_the_manifest_alone_can_be_read_without_the_models(folder: Path) -> None:
    (folder / "stage0.onnx").unlink()
    assert read_manifest(folder) == tiny_bundle().manifest


def test_a_digest_is_that_of_the_standard_tools() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """A good bundle on disk that has its cascade in one file too, which is stage 0 here."""
    manifest = parse(put("fused", FUSED))
    write(tmp_path / "fused", manifest, {**Disk(manifest), "cascade.onnx": MODELS[0]})
    return tmp_path / "fused"


def test_a_fused_file_is_written_and_read_with_the_stages(fused: Path) -> None:
    found = read(fused)
    assert found.fused == MODELS[0]
    assert found.models == tuple(MODELS)
    assert contents(fused) == {**found.files(), "manifest.json": (fused / "manifest.json").read_bytes()}


def test_a_changed_fused_file_is_noticed(fused: Path) -> None:
    (fused / "cascade.onnx").write_bytes(MODELS[1])
    with pytest.raises(BundleError, match="was changed or cut") as caught:
        read(fused)
    assert caught.value.field == "fused.sha256"


def test_a_missing_fused_file_is_named(fused: Path) -> None:
    (fused / "cascade.onnx").unlink()
    with pytest.raises(BundleError, match=r"cannot read 'cascade\.onnx'") as caught:
        read(fused)
    assert caught.value.field == "fused.file"


def test_a_fused_file_that_was_not_given_is_named(tmp_path: Path) -> None:
    manifest = parse(put("fused", FUSED))
    with pytest.raises(BundleError, match="no bytes were given") as caught:
        write(tmp_path / "bundle", manifest, Disk(manifest))
    assert caught.value.field == "fused.file"


def test_the_files_of_a_bundle_without_a_fused_one_are_its_stages(folder: Path) -> None:
    assert read(folder).files() == dict(zip(["stage0.onnx", "stage1.onnx", "stage2.onnx"], MODELS, strict=True))


def test_an_older_bundle_is_replaced_whole(folder: Path) -> None:
    model = onnx_model(9)
    write(folder, tiny_manifest([model]), {"stage0.onnx": model})
    assert sorted(contents(folder)) == ["manifest.json", "stage0.onnx"]
    assert read(folder).models == (model,)


def test_a_damaged_bundle_can_be_replaced(folder: Path) -> None:
    (folder / "stage0.onnx").unlink()
    write_tiny_bundle(folder)
    assert read(folder) == tiny_bundle()


def test_nothing_but_the_bundle_is_left_beside_it(folder: Path) -> None:
    write_tiny_bundle(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "some" / "where" / "bundle")
    assert read(tmp_path / "some" / "where" / "bundle") == tiny_bundle()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_tiny_bundle(tmp_path / "bundle")
    assert read(tmp_path / "bundle") == tiny_bundle()


def test_the_current_folder_can_become_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    write_tiny_bundle(Path())
    assert read(tmp_path / "bundle") == tiny_bundle()


def test_anybody_may_read_what_was_written(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["photo.jpg", "manifest.json"])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_text('{"manifest_version": 3, "name": "of a browser extension"}')
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        write_tiny_bundle(tmp_path / "photos")
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(BundleError, match="is not a bundle"):
        write_tiny_bundle(tmp_path / "notes")
    assert contents(tmp_path) == {"notes": b"keep"}


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(BundleError, match="cannot write"):
        write_tiny_bundle(tmp_path / "notes" / "bundle")


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    manifest = tiny_bundle().manifest
    seen: list[list[str]] = []
    disk = Disk(manifest, lambda _: seen.append(sorted(contents(tmp_path))))
    write(tmp_path / "bundle", manifest, disk)
    assert [path.rpartition("/")[2] for path in seen[-1]] == ["stage0.onnx", "stage1.onnx"]


FAULTS = [OSError(28, "No space left on device"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", FAULTS)
def test_a_write_that_fails_half_way_leaves_the_old_bundle_and_no_trace(folder: Path, error: BaseException) -> None:
    manifest = tiny_bundle(threshold=0.9).manifest
    asked: list[str] = []

    def fail(name: str) -> None:
        asked.append(name)
        if asked.count("stage2.onnx") == 2:  # first for the digest, then for the disk
            raise error

    before = contents(folder.parent)
    with pytest.raises((BundleError, KeyboardInterrupt)):
        write(folder, manifest, Disk(manifest, fail))
    assert contents(folder.parent) == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", FAULTS)
def test_a_new_bundle_that_cannot_take_its_place_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if target == folder and self.parent == folder.parent:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    before = contents(folder.parent)
    with pytest.raises((BundleError, KeyboardInterrupt)):
        write_tiny_bundle(folder, threshold=0.9)
    assert contents(folder.parent) == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_model_that_was_not_given_is_named(tmp_path: Path) -> None:
    manifest = tiny_bundle().manifest
    with pytest.raises(BundleError, match="no bytes were given") as caught:
        write(tmp_path / "bundle", manifest, {"stage0.onnx": MODELS[0]})
    assert caught.value.field == "stages[1].file"
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_what_the_manifest_says_is_named(tmp_path: Path) -> None:
    manifest = tiny_bundle().manifest
    with pytest.raises(BundleError, match="is not the digest") as caught:
        write(tmp_path / "bundle", manifest, {**Disk(manifest), "stage2.onnx": b"other"})
    assert caught.value.field == "stages[2].sha256"


def test_two_files_that_cannot_stand_side_by_side_are_refused(tmp_path: Path) -> None:
    manifest = parse(put("stages.1.file", "stage0.onnx/second.onnx"))
    with pytest.raises(BundleError, match="cannot write"):
        write(tmp_path / "bundle", manifest, Disk(manifest))
    assert not list(tmp_path.iterdir())


def test_a_model_cannot_take_the_manifests_place(tmp_path: Path) -> None:
    manifest = parse(put("stages.0.file", "manifest.json"))
    with pytest.raises(BundleError):
        write(tmp_path / "bundle", manifest, Disk(manifest))
    assert not list(tmp_path.iterdir())


def edit_manifest(folder: Path, **changes: object) -> dict[str, object]:
    """Change what is on the disk, digest and all else left as they are."""
    document = {**json.loads((folder / "manifest.json").read_text()), **changes}
    (folder / "manifest.json").write_text(json.dumps(document))
    return document


def test_a_manifest_carries_its_own_digest(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    rest = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert document["digest"] == sha256(text.encode())


def test_a_manifest_without_a_digest_is_read_as_older_ones_are(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    del document["digest"]
    (folder / "manifest.json").write_text(json.dumps(document))
    assert read(folder) == tiny_bundle()


def test_spaces_and_the_order_of_keys_may_change_under_a_digest(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(dict(reversed(document.items())), indent=7))
    assert read(folder) == tiny_bundle()


EDITS: dict[str, dict[str, object]] = {
    "another threshold": {"exit": {**tiny_manifest(MODELS).document()["exit"], "threshold": 0.61}},
    "mean and std swapped": {
        "preprocess": {"size": 8, "mean": [0.2, 0.25, 0.3], "std": [0.5, 0.4, 0.3]},
    },
    "a label": {"labels": ["cat", "dog", "fox", "owl"]},
    "a digest of something else": {"digest": "0" * 64},
    "a digest that is none": {"digest": None},
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_noticed_by_its_digest(folder: Path, name: str) -> None:
    edit_manifest(folder, **EDITS[name])
    with pytest.raises(BundleError, match="was changed after it was written") as caught:
        read(folder)
    assert caught.value.field == "digest"


def test_golden_samples_are_written_and_read_with_their_digest_checked(tmp_path: Path) -> None:
    written = write_golden_bundle(tmp_path / "bundle")
    assert read(tmp_path / "bundle") == written == golden_bundle()


def test_a_cut_file_of_golden_samples_is_noticed(tmp_path: Path) -> None:
    write_golden_bundle(tmp_path / "bundle")
    os.truncate(tmp_path / "bundle" / "golden.npz", 1000)
    with pytest.raises(BundleError, match="was changed or cut") as caught:
        read(tmp_path / "bundle")
    assert caught.value.field == "golden.sha256"
