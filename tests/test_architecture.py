"""Who imports whom, what is never loaded, and that everything public says what it is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cascade
import rescade
from tests.builders import write_tiny_bundle

ROOT = Path(rescade.__file__).parent
CHECKOUT = Path(__file__).parents[1]
PACKAGES = ["cascade", "server", "training", "export", "bench"]
SOURCES = [*(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))), ROOT / "rescade.py"]
HEAVY = {"torch", "torchvision", "onnx", "onnxscript", "sklearn", "tensorboard"}
LIGHT = [
    "rescade",
    *sorted(f"cascade.{path.stem}" for path in Path(cascade.__path__[0]).glob("[!_]*.py")),
    "server.app",
    "server.__main__",
    "bench.__main__",
    "bench.sync",
    "export.verify",
    "export.whole",
    "export.show",
    "export.trust",
    "export.__main__",
]

IMPORTING = """
import importlib, json, sys
loaded = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    loaded[name] = sorted({module.partition(".")[0] for module in sys.modules})
print(json.dumps(loaded))
"""
WITHOUT = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
import rescade
rescade.main(sys.argv[2:], prog_name="rescade")
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def without(packages: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The front door where these packages are not installed."""
    return python(WITHOUT, json.dumps(sorted(packages)), *arguments)


def public(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The module, its public classes and functions, and the public methods of those classes."""
    yield "module", tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for method in inner:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def test_the_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    if not (CHECKOUT / "cascade").is_dir():
        pytest.skip("the contracts are those of a checkout")
    code = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    found = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


def test_nothing_that_serves_or_measures_loads_torch() -> None:
    found = python(IMPORTING, json.dumps(LIGHT))
    assert found.returncode == 0, found.stderr
    loaded = json.loads(found.stdout)
    assert {name: HEAVY & set(modules) for name, modules in loaded.items()} == {name: set() for name in LIGHT}


def test_the_front_door_and_the_core_load_nothing_of_ours_but_themselves() -> None:
    core = [name for name in LIGHT if name == "rescade" or name.startswith("cascade.")]
    found = python(IMPORTING, json.dumps(core))
    last = set(json.loads(found.stdout)[core[-1]])
    assert not last & {"server", "training", "export", "bench", "onnxruntime", "fastapi", "asyncio"}


def test_a_bundle_can_be_shown_and_verified_without_torch(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    for verb in ("show", "verify"):
        found = without(HEAVY | {"yaml", "safetensors"}, verb, str(tmp_path / "bundle"))
        assert found.returncode == 0, found.stderr


def test_a_bundle_gets_its_cascade_in_one_file_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    write_tiny_bundle(tmp_path / "bundle")
    absent = (HEAVY | {"yaml", "safetensors"}) - {"onnx"}
    found = without(absent, "export", str(tmp_path / "bundle"), "--out", str(tmp_path / "made"), "--fused")
    assert found.returncode == 0, found.stderr


@pytest.mark.train
def test_a_bundle_of_an_image_folder_is_derived_without_torch() -> None:
    names = ["export.derive", "export.sources", "export.splits", "export.search"]
    found = python(IMPORTING, json.dumps(names))
    assert found.returncode == 0, found.stderr
    assert not {"torch", "torchvision"} & set(json.loads(found.stdout)[names[-1]])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, node in public(tree) if not ast.get_docstring(node)] == []
