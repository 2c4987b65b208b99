"""`rescade golden`, `keygen`, `sign` and `verify --public-key`: what they print, and how they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.__main__ import main
from tests.builders import write_golden_bundle, write_tiny_bundle

pytest.importorskip("cryptography")
ROOT = Path(__file__).parents[2]


def rescade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_golden_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_is_signed_and_verified_with_the_keys_that_were_made(folder: Path, tmp_path: Path) -> None:
    made = rescade("keygen", tmp_path / "key.pem")
    signed = rescade("sign", folder, "--key", tmp_path / "key.pem")
    verified = rescade("verify", folder, "--public-key", tmp_path / "key.pem.pub")
    assert (made.exit_code, signed.exit_code, verified.exit_code) == (0, 0, 0)
    assert made.stdout.split()[-1] == signed.stdout.split()[-1]
    assert "40 golden samples: same classes and exits" in verified.stdout
    assert "signed by a key that was given" in verified.stdout
    assert "signed; nobody looked by whom" in rescade("verify", folder).stdout


def test_verify_says_where_a_bundle_has_neither_signature_nor_golden_samples(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    result = rescade("verify", tmp_path / "bundle")
    assert result.exit_code == 0
    assert "no golden samples" in result.stdout
    assert "not signed" in result.stdout


def test_a_bundle_that_is_not_signed_fails_where_a_key_is_asked_for(folder: Path, tmp_path: Path) -> None:
    rescade("keygen", tmp_path / "key.pem")
    result = rescade("verify", folder, "--public-key", tmp_path / "key.pem.pub")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: manifest.sig: the bundle is not signed")


def test_a_key_that_is_there_already_is_kept(tmp_path: Path) -> None:
    rescade("keygen", tmp_path / "key.pem")
    before = (tmp_path / "key.pem").read_bytes()
    result = rescade("keygen", tmp_path / "key.pem")
    assert (result.exit_code, (tmp_path / "key.pem").read_bytes()) == (1, before)
    assert "is never overwritten" in result.stderr


def test_a_key_that_is_none_signs_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("hello")
    result = rescade("sign", folder, "--key", tmp_path / "key.pem")
    assert result.exit_code == 1
    assert "holds no private key" in result.stderr
    assert not (folder / "manifest.sig").exists()


def test_golden_samples_of_another_recipe_are_refused_with_status_1(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    recipe = ROOT / "training" / "recipes" / "digits.yaml"
    result = rescade("golden", tmp_path / "bundle", "--recipe", recipe, "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: preprocess: ")


def test_a_bundle_of_the_project_gets_its_golden_samples_again(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ROOT / "bundles" / "digits", tmp_path / "digits")
    recipe = ROOT / "training" / "recipes" / "digits.yaml"
    result = rescade("golden", tmp_path / "digits", "--recipe", recipe, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "has 12 golden samples" in result.stdout
