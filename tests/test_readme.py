"""Every command of the README is run somewhere, or held against the files that it names."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from tests.readme import commands, programs, sections
from tests.serving import RESCADE, ROOT, environment, served

RUN_BY = {
    "Two commands": "scripts/test itself, which runs scripts/demo, and scripts/test-wheel in an environment of its own",
    "Step by step": "tests/test_end_to_end.py",
    "Open Inference Protocol": "this file",
    "One file": "this file",
    "Several models, and changing them while they serve": "this file",
    "Precision": "this file, on the bundle of digits",
    "Trust": "this file",
    "Docker": "this file, as far as that goes without an engine",
}

KEY = "a key for this test"


def test_no_section_has_commands_that_nobody_runs() -> None:
    assert {heading for heading, body in sections() if "```bash" in body} == set(RUN_BY)


def shell(command: str, folder: Path, **more: str) -> Any:
    """What a command prints, as JSON; an HTTP error is an error."""
    line = command.replace("curl -s ", "curl -sS --fail-with-body ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folder,
        env={**environment(), **more},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return json.loads(done.stdout)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "bundles" / "digits", tmp_path / "bundles" / "digits")
    other = shutil.copytree(ROOT / "bundles" / "digits", tmp_path / "models" / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    del manifest["digest"]  # as the server advises where a change is meant
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))
    Image.new("L", (8, 8), 90).save(tmp_path / "IMAGE.png")
    return tmp_path


def test_the_protocols_curl_lines_get_answers(clone: Path) -> None:
    model, infer = commands("Open Inference Protocol")
    with served(["rescade", "serve", "bundles/digits"], clone / "server.log", clone) as url:
        port = url.rpartition(":")[2]
        assert shell(model.replace("8000", port), clone)["name"] == "digits"
        outputs = shell(infer.replace("8000", port), clone)["outputs"]
    assert [output["name"] for output in outputs] == ["label", "exit_stage"]


def test_several_models_are_changed_while_they_serve(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, serve, *curls = commands("Several models, and changing them while they serve")
    digest = subprocess.run(
        ["bash", "-c", f'{export}; printf %s "$RESCADE_ADMIN_KEY_SHA256"'],
        env={**os.environ, "KEY": KEY},
        capture_output=True,
        check=True,
    )
    monkeypatch.setenv("RESCADE_ADMIN_KEY_SHA256", digest.stdout.decode())
    command = shlex.split(serve.replace("/models", "models"))
    with served(command, clone / "server.log", clone) as url:
        at = url.removeprefix("http://")
        listed, reloaded, patched, managed = (
            shell(curl.replace("localhost:8000", at), clone, KEY=KEY) for curl in curls
        )
    assert [model["name"] for model in listed["models"]] == ["digits", "other"]
    assert [row["result"] for row in reloaded["bundles"]] == ["kept", "kept"]
    assert patched["new"] == {"threshold": 0.8, "max_stage": 1}
    assert managed["models"][0]["controls"] == {"threshold": 0.8, "max_stage": 1}


def test_the_one_file_is_made_and_asked_as_it_is_written(clone: Path) -> None:
    pytest.importorskip("onnx")
    (command,) = commands("One file")
    made = subprocess.run(
        [*RESCADE, *shlex.split(command)[1:]], cwd=clone, env=environment(), capture_output=True, check=False
    )
    assert made.returncode == 0, made.stderr
    (program,) = programs("One file")
    asked = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr
    label, stage, energy = asked.stdout.split()
    assert label in set("0123456789")
    assert stage in ("0", "1")
    assert 0.1 <= float(energy) <= 1


@pytest.mark.train
@pytest.mark.slow
def test_bundles_change_precision_as_the_section_says(clone: Path) -> None:
    pytest.importorskip("torch")
    shutil.copytree(ROOT / "training" / "recipes", clone / "training" / "recipes")
    for line in commands("Precision"):
        small = line.replace("cifar10_cpu.yaml", "digits.yaml").replace("cifar10", "digits")
        assert small != line
        subprocess.run(shlex.split(small), cwd=clone, env=environment(), check=True, timeout=300)
    manifest = json.loads((clone / "runs" / "int8" / "manifest.json").read_text())
    assert [stage["precision"] for stage in manifest["stages"]] == ["int8", "int8"]
    assert (clone / "runs" / "search" / "search.json").is_file()


def test_a_bundle_is_signed_verified_and_served_by_those_who_trust_the_key(clone: Path) -> None:
    keygen, sign, verify, serve = commands("Trust")
    for command in (keygen, sign, verify):
        subprocess.run(shlex.split(command), cwd=clone, env=environment(), check=True, capture_output=True, timeout=60)
    with served(shlex.split(serve), clone / "server.log", clone) as url:
        assert httpx.get(f"{url}/bundle").json()["name"] == "digits"


def test_docker_lines_name_what_is_there() -> None:
    build_gpu, build_cpu, run, compose = map(shlex.split, commands("Docker"))
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert build_gpu[-1] == build_cpu[-1] == "."
    assert build_cpu[build_cpu.index("--build-arg") + 1] == "DEVICE=cpu"
    assert "ARG DEVICE=gpu" in dockerfile
    assert "COPY bundles /bundles" in dockerfile
    assert (ROOT / run[-1].removeprefix("/")).is_dir()
    assert run[-2] == build_cpu[build_cpu.index("-t") + 1]
    described = yaml.safe_load((ROOT / compose[compose.index("-f") + 1]).read_text(encoding="utf-8"))
    assert set(described["services"]) == {"server", "prometheus", "grafana"}
