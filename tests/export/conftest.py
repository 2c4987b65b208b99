"""One run, exported once; each test leaves torch as it found it. Nothing is collected where torch is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from export.build import Built
    from training.run import Run

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the exported bundle is; tests leave it as it is."""
    return tmp_path_factory.mktemp("bundles") / "tiny"


@pytest.fixture(scope="session")
def built(tiny_run: Run, folder: Path) -> Built:
    """What the export of the small run gave back."""
    from export.build import build
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        return build(tiny_run, folder, quiet=True)


@pytest.fixture(scope="session")
def student_alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one stage, quick to export."""
    from tests.tiny_run import train_tiny
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        return train_tiny(
            tmp_path_factory.mktemp("alone") / "run",
            teacher=None,
            student={"model": "resnet8_0.125_a", "method": {"name": "vanilla"}},
            residual=None,
            schedule={"epochs": 1, "batch_size": 256, "policy": "cosine"},
        )
