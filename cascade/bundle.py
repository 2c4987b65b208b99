"""Read and write a bundle folder: `manifest.json` and the files it names.

Writing goes to a folder beside the target, the manifest last, and is renamed into place, so that a reader finds a
whole bundle or none. Reading checks every digest and gives back the bytes that were checked, so that what runs is
what was verified; the manifest is read once, and the signature is that of the bytes that are parsed.

A manifest carries a digest of itself, which `write` makes: SHA-256 over its content as canonical JSON. That catches
accidents, an edited threshold among them, but whoever means to edit can make a new digest; `cascade.signature` catches
intent. Manifests without a digest are read as well: older ones have none.
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
from cascade.signature import SIGNATURE, Signer, Trusted

MANIFEST = "manifest.json"
DIGEST = "digest"
MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        manifest: the description.
        models: one ONNX file a stage, as bytes, digests checked.
        golden: the file of golden samples, as bytes, digest checked; None where the bundle has none.
        fused: the whole cascade as one ONNX file, if the bundle has it, likewise.
    """

    manifest: Manifest
    models: tuple[bytes, ...]
    golden: bytes | None = None
    fused: bytes | None = None

    def files(self) -> dict[str, bytes]:
        """File name in the bundle -> bytes: all but the manifest."""
        contents = [*self.models, *(data for data in (self.golden, self.fused) if data is not None)]
        return {entry.file: data for (_, entry), data in zip(self.manifest.files(), contents, strict=True)}


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def read(folder: Path, trusted: Trusted | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        folder: of the bundle.
        trusted: keys, one of which must have signed the manifest; default that nobody need have.

    Raises:
        BundleError: something is missing, wrong, of an unknown format version, or not what its digest says.
        Untrusted: keys were given, and none of them signed this.
    """
    manifest = read_manifest(folder, trusted)
    root = folder.resolve()
    contents = {field: _read_file(root, folder, field, entry.file, entry.sha256) for field, entry in manifest.files()}
    models = tuple(contents[f"stages[{number}]"] for number in range(len(manifest.stages)))
    return Bundle(manifest, models, contents.get("golden"), contents.get("fused"))


def _read_file(root: Path, folder: Path, field: str, name: str, wanted: str) -> bytes:
    path = root / name
    try:
        if not path.resolve().is_relative_to(root):
            raise BundleError(f"{field}.file", f"{name!r} leads out of the bundle {folder}")
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # before Python 3.13, a link to itself is a RuntimeError
        raise BundleError(f"{field}.file", f"cannot read {name!r}: {error}") from error
    if (digest := sha256(data)) != wanted:
        raise BundleError(
            f"{field}.sha256",
            f"{name} has digest {digest}, the manifest says {wanted}: the file was changed or cut; "
            "export or copy the bundle again",
        )
    return data


def read_manifest(folder: Path, trusted: Trusted | None = None) -> Manifest:
    """Read the manifest alone, without looking at the model files.

    Args:
        folder: of the bundle.
        trusted: keys, one of which must have signed it; default that nobody need have.

    Raises:
        BundleError: not a bundle, not JSON, an unknown format version, or a field that is wrong.
        Untrusted: keys were given, and none of them signed this.
    """
    text = manifest_bytes(folder)
    if trusted is not None:
        trusted.check(text, signature_of(folder))
    return _parse_text(text, folder / MANIFEST)


def manifest_bytes(folder: Path) -> bytes:
    """The manifest as it lies there, which is what a signature is over.

    Raises:
        BundleError: there is none, or it is too large to be one.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(MANIFEST, f"cannot read {path}: {error.strerror}; is {folder} a bundle?") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(MANIFEST, f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    return text


def sign(folder: Path, signer: Signer) -> None:
    """Put a signature into a bundle that is whole; one that is there is replaced.

    Raises:
        BundleError: the bundle is not whole, or cannot be written to.
    """
    text = manifest_bytes(folder)
    read(folder)
    fresh = folder / f".{SIGNATURE}"
    try:
        _write_file(fresh, signer.sign(text).document())
        fresh.replace(folder / SIGNATURE)
    except OSError as error:
        raise BundleError(SIGNATURE, f"cannot write {folder / SIGNATURE}: {error.strerror}") from error


def signature_of(folder: Path) -> bytes | None:
    """What `manifest.sig` holds, or None where there is none.

    Raises:
        BundleError: it is there and cannot be read.
    """
    try:
        with (folder / SIGNATURE).open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(SIGNATURE, f"cannot read {folder / SIGNATURE}: {error.strerror}") from error


def _parse_text(text: bytes, path: Path) -> Manifest:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(MANIFEST, f"{path} is not JSON: {error}") from error
    return parse(document)


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 over a manifest as canonical JSON: sorted keys, no spaces, UTF-8, and without its own digest."""
    rest = {key: value for key, value in document.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode(errors="surrogatepass"))


def parse(document: Any) -> Manifest:
    """Check a manifest given as plain JSON values; its digest, where it has one.

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
        if DIGEST in document and document[DIGEST] != (found := digest_of(document)):
            raise BundleError(
                DIGEST,
                f"the manifest says {document[DIGEST]!r}, and has {found}: something in it was changed after it was "
                "written; copy the bundle again, or take 'digest' out if the change is meant",
            )
        rest = {key: value for key, value in document.items() if key != DIGEST}
        return Manifest.model_validate_json(json.dumps(rest))
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


def write(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write a bundle, whole or not at all; one that is there is replaced, and its signature goes with it.

    Args:
        folder: where the bundle will be.
        manifest: the description; its digests must be those of `files`.
        files: file name in the bundle -> bytes.

    Raises:
        BundleError: a file is missing or does not fit its digest, `folder` holds something that is no bundle, or it
            cannot be written.
    """
    folder = folder.absolute()  # "." has no name to put another folder beside
    for field, entry in manifest.files():
        if entry.file not in files:
            raise BundleError(f"{field}.file", f"no bytes were given for {entry.file!r}")
        if sha256(files[entry.file]) != entry.sha256:
            raise BundleError(f"{field}.sha256", f"is not the digest of {entry.file!r}")
    if folder.exists() and not _replaceable(folder):
        raise BundleError(str(folder), "exists and is not a bundle: name another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _fresh_beside(folder) as fresh:
            _fill(fresh, manifest, files)
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


def _fill(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write the files, then the manifest."""
    for _, entry in manifest.files():
        path = folder / entry.file
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(path, files[entry.file])
    document = manifest.document()
    text = json.dumps({**document, DIGEST: digest_of(document)}, indent=2, ensure_ascii=False) + "\n"
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
