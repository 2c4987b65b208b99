"""Async tests here run on asyncio, the only loop bench is for."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
