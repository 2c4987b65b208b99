"""Each test leaves torch as it found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        yield
