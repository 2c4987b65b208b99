"""The one command's front door."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from rescade import VERBS, Verbs, main
from tests.builders import write_tiny_bundle
from tests.test_architecture import without

TRAINED = importlib.util.find_spec("torch") is not None
WITH_TORCH = {"train", "evaluate", "sparsity", "methods", "recipes", "models", "reuse", "profile"}


def rescade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="rescade")


def test_help_lists_every_verb_in_the_order_of_the_work() -> None:
    result = rescade("--help")
    assert result.exit_code == 0
    places = [result.stdout.index(f"  {verb} ") for verb in VERBS]
    assert places == sorted(places)
    training = ["train", "evaluate", "sparsity", "methods", "recipes", "models", "reuse"]
    export = ["export", "calibrate", "verify", "show", "profile", "golden", "keygen", "sign"]
    assert list(VERBS) == [*training, *export, "serve", "health", "bench"]


def test_help_imports_no_verb() -> None:
    found = without({"training", "export", "server", "bench"}, "--help")
    assert found.returncode == 0, found.stderr
    assert "Serve a bundle over HTTP." in found.stdout


@pytest.mark.parametrize("verb", [verb for verb in VERBS if TRAINED or verb not in WITH_TORCH])
def test_every_verb_explains_itself(verb: str) -> None:
    result = rescade(verb, "--help")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: rescade {verb}")


def test_a_verb_says_what_the_list_of_verbs_says_it_does() -> None:
    context = click.Context(main)
    assert isinstance(main, click.Group)
    assert all(main.get_command(context, verb) is not None for verb in ("verify", "show"))
    assert main.get_command(context, "paint") is None
    assert main.list_commands(context) == list(VERBS)


def test_an_unknown_verb_ends_with_status_2() -> None:
    result = rescade("paint")
    assert result.exit_code == 2
    assert "No such command 'paint'" in result.stderr


def test_no_verb_shows_the_help() -> None:
    result = rescade()
    assert "Usage: rescade" in result.output


@pytest.mark.skipif(
    "rescade" not in {entry.name for entry in importlib.metadata.distributions()}, reason="rescade is not installed"
)
def test_the_version_is_that_of_the_package() -> None:
    assert rescade("--version").stdout.strip().endswith(importlib.metadata.version("rescade"))


def test_a_verb_that_works_ends_with_status_0(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    assert rescade("verify", tmp_path / "bundle").exit_code == 0


def test_a_verb_that_fails_ends_with_status_1_and_one_line(tmp_path: Path) -> None:
    result = rescade("verify", tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: manifest.json: ")


def test_a_verb_that_was_asked_wrongly_ends_with_status_2() -> None:
    assert rescade("verify", "nowhere").exit_code == 2


@pytest.mark.parametrize("verb", ["train", "evaluate", "methods"])
def test_training_without_its_packages_says_what_to_install(verb: str) -> None:
    found = without({"torch"}, verb, "--help")
    assert found.returncode == 1
    assert found.stderr == "Error: this needs the package 'torch': pip install '.[train]'\n"


def test_export_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    found = without({"torch", "onnx"}, "export", str(tmp_path), "--out", str(tmp_path / "bundle"))
    assert found.returncode == 1
    assert "pip install '.[train]'" in found.stderr
    assert "Traceback" not in found.stderr


class Lacking(Verbs):
    """Verbs whose packages are missing: each is called what it lacks."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        def run() -> None:
            raise ModuleNotFoundError(f"No module named {cmd_name!r}", name=cmd_name)

        return click.Command(cmd_name, callback=run)


@pytest.mark.parametrize("package", ["torch", "sklearn.datasets", "tensorboard"])
def test_a_package_that_is_missed_late_is_still_named(package: str) -> None:
    result = CliRunner().invoke(Lacking(), [package])
    assert result.exit_code == 1
    assert result.stderr == f"Error: this needs the package '{package}': pip install '.[train]'\n"


def test_a_module_of_our_own_that_is_missing_is_a_fault_and_stays_one() -> None:
    assert isinstance(CliRunner().invoke(Lacking(), ["export.build"]).exception, ModuleNotFoundError)


def test_a_package_that_is_no_matter_of_training_is_not_blamed_on_it() -> None:
    found = without({"numpy"}, "verify", ".")
    assert found.returncode == 1
    assert "ModuleNotFoundError" in found.stderr
    assert "[train]" not in found.stderr
