"""Each test leaves torch as it found it. Nothing is collected where torch is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        yield
