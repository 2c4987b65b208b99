"""What many tests start from: one small run, and real images where they are to be had."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from training.run import Run


UNPACKED = Path("~/.cache/rescade/cifar10/test").expanduser()
ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10.tar.xz"


@pytest.fixture(scope="session")
def cifar10_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The 10,000 test images as JPEG files, in folders by class; without them the test is skipped."""
    if UNPACKED.is_dir():
        return sorted(UNPACKED.glob("*/*.jpg"))
    if not ARCHIVE.is_file():
        pytest.skip(f"the CIFAR-10 images are not at {UNPACKED}")
    with tarfile.open(ARCHIVE) as archive:
        unpacked = tmp_path_factory.mktemp("cifar10")
        archive.extractall(unpacked, filter="data")
    return sorted((unpacked / "test").glob("*/*.jpg"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three stages; tests leave it as it is."""
    from tests.tiny_run import train_tiny
    from tests.torch_state import torch_as_it_was

    with torch_as_it_was():
        return train_tiny(tmp_path_factory.mktemp("tiny") / "run")
