"""What the server asks of a bundle before it serves it: digests always, signatures and golden samples on request."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cascade.bundle import Bundle, sign
from cascade.errors import BundleError
from cascade.keys import generate, read_signer
from server.app import create_app, open_runtimes
from server.library import library_of
from server.runtime import OnnxRuntime
from tests.builders import encoded, golden_bundle, random_photo, tiny_bundle, write_golden_bundle, write_tiny_bundle
from tests.server.harness import client_of, settings_for_tests
from tests.server.running import started
from tests.tampering import ACCIDENTS, EDITS, MISTAKES, WRITERS, mistake_normalising

ROOT = Path(__file__).parents[2]
HEADERS = {"X-Admin-Key": "administrator"}
DIGEST = hashlib.sha256(b"administrator").hexdigest()
PHOTO = encoded(random_photo())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with golden samples."""
    write_golden_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half is beside it."""
    pytest.importorskip("cryptography")
    generate(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("key.pem.pub")


def start(folder: Path, **settings: Any) -> None:
    """Do what a process does with its bundles until it is ready."""
    given = settings_for_tests(bundle=folder, **settings)
    for runtime in open_runtimes(given, library_of(given)):
        runtime.warm_up()


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that is warm, and that may reload it."""
    app = create_app(settings_for_tests(bundle=folder, admin_key_sha256=DIGEST, **settings))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.service.warmed.wait()
        assert app.state.service.failure is None
        client.headers.update(HEADERS)
        yield client


async def refused_at_reload(client: httpx.AsyncClient, message: str) -> None:
    """A reload says what is wrong, and what was served before is served still."""
    response = await client.post("/admin/reload")
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]
    answer = await client.post("/predict", content=PHOTO, headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["threshold"]) == (200, 0.6)


@pytest.mark.parametrize("name", ACCIDENTS)
def test_a_bundle_that_was_damaged_is_refused_at_the_start(folder: Path, name: str) -> None:
    spoil, message = ACCIDENTS[name]
    spoil(folder)
    with pytest.raises(BundleError) as caught:
        start(folder)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ACCIDENTS)
async def test_a_bundle_that_was_damaged_is_refused_at_a_reload(folder: Path, name: str) -> None:
    spoil, message = ACCIDENTS[name]
    async with serving(folder) as client:
        spoil(folder)
        await refused_at_reload(client, message)


def test_a_good_bundle_passes_the_self_test(folder: Path) -> None:
    start(folder, self_test=True)


@pytest.mark.parametrize("name", EDITS)
def test_a_skilful_edit_is_served_without_and_refused_with_a_self_test(folder: Path, name: str) -> None:
    spoil, message = EDITS[name]
    spoil(folder)
    start(folder)
    with pytest.raises(BundleError) as caught:
        start(folder, self_test=True)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", EDITS)
async def test_a_skilful_edit_is_refused_at_a_reload_with_a_self_test(folder: Path, name: str) -> None:
    spoil, message = EDITS[name]
    async with serving(folder, self_test=True) as client:
        spoil(folder)
        await refused_at_reload(client, message)


@pytest.mark.parametrize("change", MISTAKES)
@pytest.mark.parametrize("kind", WRITERS)
def test_another_mean_or_std_than_the_graphs_were_made_for_fails_the_self_test(
    tmp_path: Path, kind: str, change: str
) -> None:
    WRITERS[kind](tmp_path / "bundle")
    start(tmp_path / "bundle", self_test=True)
    mistake_normalising(tmp_path / "bundle", change)
    with pytest.raises(BundleError, match=r"its logits for the golden samples differ|mean or std was changed"):
        start(tmp_path / "bundle", self_test=True)


def test_a_self_test_needs_golden_samples(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="no golden samples to test with"):
        start(tmp_path / "bundle", self_test=True)


def test_golden_samples_that_no_reader_understands_are_refused() -> None:
    bundle = golden_bundle()
    with pytest.raises(BundleError, match="holds no golden samples"):
        OnnxRuntime(Bundle(bundle.manifest, bundle.models, b"hello"), self_test=True)


def test_a_network_that_answers_otherwise_in_company_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OnnxRuntime(golden_bundle(), self_test=True)
    alone = runtime.run
    monkeypatch.setattr(runtime, "run", lambda stage, images: alone(stage, images) + (len(images) > 8))
    with pytest.raises(BundleError, match=r"stages\[0\]: its logits for the golden samples differ by 1 "):
        runtime.warm_up()


def test_a_signed_bundle_is_served(folder: Path, key: Path, public: Path) -> None:
    sign(folder, read_signer(key))
    start(folder, trusted_keys=public)


UNTRUSTED = {"unsigned": "is not signed", "signed by another": "which is not trusted", "edited": "not of this manifest"}


def spoil_signature(folder: Path, name: str, key: Path) -> None:
    """Leave a bundle that nobody trusted has signed."""
    if name == "unsigned":
        write_golden_bundle(folder, threshold=0.7)
    elif name == "edited":
        EDITS["an edited threshold"][0](folder)
    else:
        generate(key.with_name("other.pem"))
        write_golden_bundle(folder, threshold=0.7)
        sign(folder, read_signer(key.with_name("other.pem")))


@pytest.mark.parametrize("name", UNTRUSTED)
async def test_a_bundle_that_nobody_trusted_has_signed_is_refused_at_start_and_reload(
    folder: Path, key: Path, public: Path, name: str
) -> None:
    sign(folder, read_signer(key))
    async with serving(folder, trusted_keys=public) as client:
        spoil_signature(folder, name, key)
        await refused_at_reload(client, UNTRUSTED[name])
    with pytest.raises(BundleError, match=UNTRUSTED[name]):
        start(folder, trusted_keys=public)


def test_what_was_refused_is_told_with_its_name(folder: Path, public: Path) -> None:
    plan = library_of(settings_for_tests(bundle=folder, trusted_keys=public)).scan()
    assert [(finding.name, finding.version) for finding in plan.broken] == [("tiny", "1")]


def test_a_server_that_trusts_nobody_who_signed_does_not_start(folder: Path, public: Path) -> None:
    command = [sys.executable, "-m", "server", folder, "--port", "0", "--trusted-keys", public]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "manifest.sig: the bundle is not signed" in done.stderr


def test_a_server_that_fails_its_self_test_does_not_start(folder: Path) -> None:
    EDITS["a swapped mean and std"][0](folder)
    command = [sys.executable, "-m", "server", folder, "--port", "0", "--self-test"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "stages[0]: its logits for the golden samples differ" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_two_workers_serve_what_is_signed_and_passes(folder: Path, key: Path, public: Path) -> None:
    sign(folder, read_signer(key))
    with started(folder, "--self-test", "--trusted-keys", public, "--workers", "2") as (_, url):
        assert httpx.get(f"{url}/health/ready").status_code == 200


def test_golden_samples_of_the_tests_leave_at_every_stage() -> None:
    from cascade.golden import unpack

    bundle = golden_bundle()
    assert bundle.golden is not None
    assert set(unpack(bundle.golden, bundle.manifest).exits.tolist()) == {0, 1, 2}
    assert tiny_bundle().golden is None
