"""One small run, from which the tests of training and of export start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from training.run import Run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three stages; tests leave it as it is."""
    from tests.tiny_run import train_tiny
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        return train_tiny(tmp_path_factory.mktemp("tiny") / "run")
