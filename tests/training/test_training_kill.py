"""A run that is killed for real, at a moment that nobody chose, and run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny_run import DOCUMENT, document, tiny_recipe
from training.run import Run
from training.steps import run_recipe

pytestmark = [pytest.mark.train, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
OFTEN = {**DOCUMENT["runtime"], "checkpoint_s": 1e-3}


def killed_after(line: str, folder: Path) -> None:
    """Train in another process, and kill it as soon as it has said `line`."""
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(document(runtime=OFTEN)))
    command = [sys.executable, "-m", "training", "train", str(recipe), "--out", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = next((text for text in process.stderr if line in text), None)
        process.kill()
    assert said is not None
    assert not (folder / "cascade.json").exists()


def results(folder: Path) -> dict[str, bytes]:
    """Everything that a stop must not change."""
    kept = [*folder.rglob("*.safetensors"), *folder.rglob("step.json"), *folder.rglob("metrics.jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.parametrize("line", ["teacher: epoch 1:", "residual1: epoch 1:"])
def test_a_killed_run_that_is_run_again_is_bit_for_bit_the_one_that_was_not(
    tiny_run: Run, tmp_path: Path, line: str
) -> None:
    killed_after(line, tmp_path / "run")
    run_recipe(tiny_recipe(runtime=OFTEN), tmp_path / "run", quiet=True)
    assert results(tmp_path / "run") == results(tiny_run.folder)
