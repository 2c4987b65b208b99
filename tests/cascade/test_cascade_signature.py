"""Signatures: whose they are, what they cover, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.bundle import read, sign
from cascade.errors import BadKey, BundleError, Untrusted
from cascade.keys import generate, read_signer, read_trusted
from cascade.signature import Trusted
from tests.builders import tiny_bundle, write_tiny_bundle

pytest.importorskip("cryptography")
OPENSSL = shutil.which("openssl")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half is beside it."""
    generate(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def trusted(key: Path) -> Trusted:
    return read_trusted([key.with_name("key.pem.pub")])


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    """A signed bundle."""
    write_tiny_bundle(tmp_path / "bundle")
    sign(tmp_path / "bundle", read_signer(key))
    return tmp_path / "bundle"


def test_a_signed_bundle_is_read_by_whoever_trusts_the_key(folder: Path, trusted: Trusted) -> None:
    assert read(folder, trusted) == tiny_bundle()


def test_whoever_asks_for_no_key_reads_signed_and_unsigned_bundles_alike(folder: Path) -> None:
    assert read(folder) == tiny_bundle()


def test_one_of_several_keys_is_enough(folder: Path, key: Path, tmp_path: Path) -> None:
    other, _ = generate(tmp_path / "other.pem")
    assert read(folder, read_trusted([other, key.with_name("key.pem.pub")])) == tiny_bundle()


def test_an_unsigned_bundle_is_refused(folder: Path, trusted: Trusted) -> None:
    (folder / "manifest.sig").unlink()
    with pytest.raises(Untrusted, match="is not signed"):
        read(folder, trusted)


def test_a_bundle_signed_by_somebody_else_is_refused(folder: Path, tmp_path: Path) -> None:
    other, _ = generate(tmp_path / "other.pem")
    with pytest.raises(Untrusted, match="which is not trusted"):
        read(folder, read_trusted([other]))


def redigest(folder: Path, **changes: object) -> None:
    """Edit a manifest as somebody who knows how: with a digest that fits."""
    from cascade.bundle import digest_of

    document = {**json.loads((folder / "manifest.json").read_text()), **changes}
    (folder / "manifest.json").write_text(json.dumps({**document, "digest": digest_of(document)}))


def test_an_edit_with_a_new_digest_is_caught_by_the_signature_alone(folder: Path, trusted: Trusted) -> None:
    redigest(folder, labels=["cat", "dog", "fox", "owl"])
    assert read(folder).manifest.labels[0] == "cat"
    with pytest.raises(Untrusted, match="is not of this manifest"):
        read(folder, trusted)


def test_the_signature_is_of_bytes_and_a_space_more_breaks_it(folder: Path, trusted: Trusted) -> None:
    text = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(text + b" ")
    with pytest.raises(Untrusted, match="is not of this manifest"):
        read(folder, trusted)


def test_a_changed_network_is_caught_under_a_good_signature(folder: Path, trusted: Trusted) -> None:
    (folder / "stage1.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match="was changed or cut"):
        read(folder, trusted)


def test_a_signature_of_another_bundle_is_refused(folder: Path, key: Path, tmp_path: Path, trusted: Trusted) -> None:
    write_tiny_bundle(tmp_path / "other", name="other")
    sign(tmp_path / "other", read_signer(key))
    (tmp_path / "other" / "manifest.sig").replace(folder / "manifest.sig")
    with pytest.raises(Untrusted, match="is not of this manifest"):
        read(folder, trusted)


GOOD = {"algorithm": "ed25519", "key_id": "0" * 64, "signature": "AAAA"}
BAD_SIGNATURES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no signature: the file"),
    "no JSON": (b"hello", "is no signature: the file"),
    "another algorithm": (json.dumps({**GOOD, "algorithm": "none"}).encode(), "is no signature: algorithm"),
    "a key id that is none": (json.dumps({**GOOD, "key_id": "mine"}).encode(), "is no signature: key_id"),
    "something more": (json.dumps({**GOOD, "note": "x"}).encode(), "is no signature: note"),
}


@pytest.mark.parametrize("name", BAD_SIGNATURES)
def test_a_file_that_is_no_signature_is_refused(folder: Path, trusted: Trusted, name: str) -> None:
    data, message = BAD_SIGNATURES[name]
    (folder / "manifest.sig").write_bytes(data)
    with pytest.raises(Untrusted, match=message):
        read(folder, trusted)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64 at all", "é"])
def test_sixty_four_bytes_are_asked_for_in_base64(folder: Path, trusted: Trusted, text: str) -> None:
    document = json.loads((folder / "manifest.sig").read_text())
    (folder / "manifest.sig").write_text(json.dumps({**document, "signature": text}))
    with pytest.raises(Untrusted, match="is not of this manifest"):
        read(folder, trusted)


def test_a_signature_that_cannot_be_read_is_named(folder: Path, trusted: Trusted) -> None:
    (folder / "manifest.sig").unlink()
    (folder / "manifest.sig").mkdir()
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.sig"):
        read(folder, trusted)


def test_a_bundle_that_is_not_whole_is_not_signed(folder: Path, key: Path) -> None:
    (folder / "manifest.sig").unlink()
    (folder / "stage2.onnx").write_bytes(b"cut")
    with pytest.raises(BundleError, match="was changed or cut"):
        sign(folder, read_signer(key))
    assert not (folder / "manifest.sig").exists()


def test_a_bundle_that_cannot_be_written_to_is_named(folder: Path, key: Path) -> None:
    (folder / ".manifest.sig").mkdir()
    with pytest.raises(BundleError, match=r"cannot write .*manifest\.sig"):
        sign(folder, read_signer(key))


def test_only_the_owner_may_read_a_private_key(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN PRIVATE KEY" in key.read_bytes()
    assert key.with_name("key.pem.pub").read_bytes().startswith(b"-----BEGIN PUBLIC KEY")


@pytest.mark.parametrize("name", ["key.pem", "key.pem.pub"])
def test_a_key_is_never_overwritten(key: Path, name: str) -> None:
    secret = key.read_bytes()
    key.with_name("key.pem" if name == "key.pem.pub" else "key.pem.pub").unlink()
    with pytest.raises(BadKey, match="is there already"):
        generate(key)
    assert name == "key.pem.pub" or key.read_bytes() == secret


def test_a_key_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match="cannot write the key"):
        generate(tmp_path / "nowhere" / "key.pem")


@pytest.mark.parametrize("read_key", [read_signer, lambda path: read_trusted([path])])
@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, text: str, read_key: object) -> None:
    assert callable(read_key)
    (tmp_path / "key.pem").write_text(text)
    with pytest.raises(BadKey, match=r"key\.pem holds no"):
        read_key(tmp_path / "key.pem")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match=r"cannot read the key .*nowhere\.pem"):
        read_trusted([tmp_path / "nowhere.pem"])


def test_keys_of_another_kind_are_named(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    plain = forms.NoEncryption()
    (tmp_path / "ec").write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "ec.pub").write_bytes(public)
    with pytest.raises(BadKey, match="another kind of key than Ed25519"):
        read_signer(tmp_path / "ec")
    with pytest.raises(BadKey, match="another kind of key than Ed25519"):
        read_trusted([tmp_path / "ec.pub"])


def test_a_key_with_a_password_is_named(key: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as forms

    locked = forms.BestAvailableEncryption(b"secret")
    data = read_signer(key).key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, locked)
    (tmp_path / "locked.pem").write_bytes(data)
    with pytest.raises(BadKey, match="without a password"):
        read_signer(tmp_path / "locked.pem")


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_openssl_makes_keys_and_checks_signatures_too(folder: Path, tmp_path: Path) -> None:
    secret, public, raw = tmp_path / "made.pem", tmp_path / "made.pub", tmp_path / "raw"

    def openssl(*arguments: object) -> bytes:
        return subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", secret)
    openssl("pkey", "-in", secret, "-pubout", "-out", public)
    sign(folder, read_signer(secret))
    document = json.loads((folder / "manifest.sig").read_text())
    raw.write_bytes(base64.b64decode(document["signature"]))
    openssl(
        "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", folder / "manifest.json", "-sigfile", raw
    )
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    assert document["key_id"] == hashlib.sha256(der).hexdigest()


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(BadKey, match=r"pip install 'rescade\[sign\]'"):
        generate(tmp_path / "key.pem")
