"""Ed25519 keys as PEM files: the private half as PKCS #8 that only its owner may read, the public half as SPKI.

`openssl genpkey -algorithm ed25519` makes the same. The package `cryptography` is loaded where a key is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.errors import BadKey
from cascade.signature import Signer, Trusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

OWNER_ONLY, EVERYBODY = 0o600, 0o644
ADVICE = "signatures need the package 'cryptography': pip install 'rescade[sign]'"


def generate(path: Path) -> tuple[Path, str]:
    """Make a pair of keys: the private one at `path`, the public one beside it with `.pub` added.

    Returns:
        Where the public key is, and its id.

    Raises:
        BadKey: one of the files is there already or cannot be written, or `cryptography` is not installed.
    """
    forms, ed25519, _ = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    public = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    beside = path.with_name(f"{path.name}.pub")
    if beside.exists():
        raise BadKey(f"{beside} is there already, and a key is never overwritten: name another file")
    _write_new(path, secret, OWNER_ONLY)
    _write_new(beside, public, EVERYBODY)
    return beside, key_id(key.public_key())


def read_signer(path: Path) -> Signer:
    """Read a private key.

    Raises:
        BadKey: the file cannot be read, holds no private Ed25519 key, or one with a password; or `cryptography` is not
            installed.
    """
    serialization, ed25519, unsupported = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, unsupported) as error:
        raise BadKey(f"{path} holds no private key in PEM that can be read without a password: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadKey(f"{path} holds another kind of key than Ed25519: make one with `rescade keygen`")
    return Signer(key_id(key.public_key()), key)


def read_trusted(paths: Sequence[Path]) -> Trusted:
    """Read public keys.

    Raises:
        BadKey: a file cannot be read or holds no public Ed25519 key, or `cryptography` is not installed.
    """
    serialization, ed25519, unsupported = _cryptography()
    keys = {}
    for path in paths:
        try:
            key = serialization.load_pem_public_key(_read(path))
        except (ValueError, unsupported) as error:
            raise BadKey(f"{path} holds no public key in PEM: {error}") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise BadKey(f"{path} holds another kind of key than Ed25519: make one with `rescade keygen`")
        keys[key_id(key)] = key
    return Trusted(keys)


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256, in hex, of a public key as DER: what `openssl pkey -pubin -outform DER | sha256sum` prints."""
    forms, _, _ = _cryptography()
    der = key.public_bytes(forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _cryptography() -> tuple[Any, Any, Any]:
    """`serialization`, `ed25519` and the error of unknown kinds of keys."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise BadKey(ADVICE) from error
    return serialization, ed25519, UnsupportedAlgorithm


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadKey(f"cannot read the key {path}: {error.strerror}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, with its rights from the first byte on."""
    try:
        place = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(place, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(data)
    except FileExistsError as error:
        raise BadKey(f"{path} is there already, and a key is never overwritten: name another file") from error
    except OSError as error:
        raise BadKey(f"cannot write the key {path}: {error.strerror}") from error
