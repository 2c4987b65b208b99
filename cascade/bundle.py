"""Read and write a bundle folder: `manifest.json` and the ONNX files it names.

Writing goes to a folder beside the target, the manifest last, and is renamed into place, so that a reader finds a
whole bundle or none. Reading checks every digest and gives back the bytes that were checked, so that what runs is
what was verified. This module is the only one of the package that touches the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cascade.errors import BundleError
from cascade.manifest import FORMAT_VERSION, Manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        manifest: the description.
        models: one ONNX file a stage, as bytes, digests checked.
        fused: the whole cascade as one ONNX file, if the bundle has it, likewise.
    """

    manifest: Manifest
    models: tuple[bytes, ...]
    fused: bytes | None = None

    def files(self) -> dict[str, bytes]:
        """Every file but the manifest: name in the bundle -> bytes, as `write` takes them."""
        contents = self.models if self.fused is None else (*self.models, self.fused)
        return {file: data for (_, file, _), data in zip(self.manifest.files(), contents, strict=True)}


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def read(folder: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: something is missing, wrong, of an unknown format version, or not what its digest says.
    """
    manifest = read_manifest(folder)
    root = folder.resolve()
    files = [_read_file(root, *file) for file in manifest.files()]
    stages = len(manifest.stages)
    return Bundle(manifest, tuple(files[:stages]), *files[stages:])


def _read_file(root: Path, where: str, file: str, expected: str) -> bytes:
    path = root / file
    try:
        if not path.resolve().is_relative_to(root):
            raise BundleError(f"{where}.file", f"{file!r} leads out of the bundle {root}")
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # before Python 3.13, a link to itself is a RuntimeError
        raise BundleError(f"{where}.file", f"cannot read {file!r}: {error}") from error
    if (digest := sha256(data)) != expected:
        raise BundleError(
            f"{where}.sha256",
            f"{file} has digest {digest}, the manifest says {expected}: the file was changed or cut; "
            "export or copy the bundle again",
        )
    return data


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest alone, without looking at the model files.

    Raises:
        BundleError: not a bundle, not JSON, an unknown format version, or a field that is wrong.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(MANIFEST, f"cannot read {path}: {error.strerror}; is {folder} a bundle?") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(MANIFEST, f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(MANIFEST, f"{path} is not JSON: {error}") from error
    return parse(document)


def parse(document: Any) -> Manifest:
    """Check a manifest given as plain JSON values.

    Raises:
        BundleError: names the first field that is wrong.
    """
    if not isinstance(document, dict):
        raise BundleError(MANIFEST, f"must be a JSON object, not {type(document).__name__}")
    version = document.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            "format_version",
            f"this rescade reads format {FORMAT_VERSION}, the bundle has {version!r}; "
            "use the release that wrote it, or export it again",
        )
    try:
        return Manifest.model_validate_json(json.dumps(document))
    except RecursionError as error:
        raise BundleError(MANIFEST, "is nested too deeply for a manifest") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BundleError(first.get("ctx", {}).get("field") or _field(first["loc"]), first["msg"]) from error


def _field(location: tuple[int | str, ...]) -> str:
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name or MANIFEST


def write(folder: Path, manifest: Manifest, models: Mapping[str, bytes]) -> None:
    """Write a bundle, whole or not at all; one that is there is replaced.

    Args:
        folder: where the bundle will be.
        manifest: the description; its digests must be those of `models`.
        models: file name in the bundle -> bytes.

    Raises:
        BundleError: a file is missing or does not fit its digest, `folder` holds something that is no bundle, or it
            cannot be written.
    """
    folder = folder.absolute()  # "." has no name to put another folder beside
    for where, file, digest in manifest.files():
        if file not in models:
            raise BundleError(f"{where}.file", f"no bytes were given for {file!r}")
        if sha256(models[file]) != digest:
            raise BundleError(f"{where}.sha256", f"is not the digest of {file!r}")
    if folder.exists() and not _replaceable(folder):
        raise BundleError(str(folder), "exists and is not a bundle: name another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _fresh_beside(folder) as fresh:
            _fill(fresh, manifest, models)
            read(fresh)
            _swap(fresh, folder)
    except OSError as error:
        raise BundleError(str(folder), f"cannot write the bundle: {error}") from error


def _replaceable(folder: Path) -> bool:
    """Whether a folder is empty, or a bundle of any format; other programs call a file `manifest.json` too."""
    try:
        if not any(folder.iterdir()):
            return True
        document = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "format_version" in document


def _fill(folder: Path, manifest: Manifest, models: Mapping[str, bytes]) -> None:
    """Write the models, then the manifest."""
    for _, file, _ in manifest.files():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(path, models[file])
    text = json.dumps(manifest.document(), indent=2, ensure_ascii=False) + "\n"
    _write_file(folder / MANIFEST, text.encode())


@contextlib.contextmanager
def _fresh_beside(folder: Path) -> Iterator[Path]:
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    fresh.chmod(0o755)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` where `folder` is. A folder cannot be renamed over a full one, so the old one steps aside first."""
    if not folder.exists():
        fresh.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(aside / folder.name)
    try:
        fresh.rename(folder)
    except BaseException:  # Ctrl-C as well
        (aside / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
