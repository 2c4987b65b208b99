"""Who signed a bundle: a detached Ed25519 signature over the manifest's bytes, in `manifest.sig` beside it.

The manifest holds the digest of every other file, so its signature covers the bundle. What is signed are the bytes as
they lie in the file, before anybody has parsed them, so that nothing depends on how JSON is read, and OpenSSL can check
a signature as well as rescade. A signature says who made a bundle, not that the bundle is good.

Source: RFC 8032, Ed25519; the arithmetic is that of the package `cryptography`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from cascade.errors import Untrusted
from cascade.fields import Frozen, Sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"


class Signature(Frozen):
    """What `manifest.sig` says, as JSON.

    Attributes:
        algorithm: the only one there is.
        key_id: which key signed: SHA-256 of its public half as DER.
        signature: 64 bytes, base64.
    """

    algorithm: Literal["ed25519"] = "ed25519"
    key_id: Sha256
    signature: str

    def document(self) -> bytes:
        """The file's bytes."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def parse(data: bytes) -> Signature:
    """Read a signature file.

    Raises:
        Untrusted: it is none.
    """
    try:
        return Signature.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Untrusted(SIGNATURE, f"is no signature: {where}: {first['msg']}; sign the bundle again") from error


@dataclass(frozen=True)
class Signer:
    """A private key that signs manifests.

    Attributes:
        key_id: of its public half.
        key: the key.
    """

    key_id: str
    key: Ed25519PrivateKey

    def sign(self, manifest: bytes) -> Signature:
        """Sign a manifest's bytes."""
        return Signature(key_id=self.key_id, signature=base64.b64encode(self.key.sign(manifest)).decode())


@dataclass(frozen=True)
class Trusted:
    """Keys that may sign a bundle.

    Attributes:
        keys: by key id.
    """

    keys: Mapping[str, Ed25519PublicKey]

    def check(self, manifest: bytes, signature: bytes | None) -> str:
        """See that one of the keys signed these bytes.

        Args:
            manifest: as it lies on the disk.
            signature: what `manifest.sig` holds; None where there is none.

        Returns:
            The id of the key.

        Raises:
            Untrusted: there is no signature, nobody trusted made it, or it is of other bytes.
        """
        if signature is None:
            raise Untrusted(
                SIGNATURE, "the bundle is not signed, and only trusted keys are accepted: `rescade sign` it"
            )
        from cryptography.exceptions import InvalidSignature  # there, since the keys are of this package

        found = parse(signature)
        key = self.keys.get(found.key_id)
        if key is None:
            known = ", ".join(self.keys)
            raise Untrusted(SIGNATURE, f"signed by key {found.key_id}, which is not trusted; trusted: {known}")
        try:
            key.verify(base64.b64decode(found.signature, validate=True), manifest)
        except (InvalidSignature, ValueError) as error:
            raise Untrusted(
                SIGNATURE,
                f"the signature by key {found.key_id} is not of this manifest: one of the two was changed since; "
                "copy the bundle again, or sign it again if the change is meant",
            ) from error
        return found.key_id
