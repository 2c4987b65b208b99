"""Page-locked memory: registered while it lives, and ordinary memory where that cannot be. A stand-in is CUDA here."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys

import numpy as np
import pytest

from server.pinned import _say, loaded, page_locked


class Cuda:
    """Stands for the CUDA runtime: notes what is registered, and answers with an error if it is told to."""

    def __init__(self, answer: int = 0) -> None:
        self.answer, self.device, self.errors_taken = answer, -1, 0
        self.registered: dict[int, int] = {}

    def cudaSetDevice(self, number: ctypes.c_int) -> int:  # noqa: N802  as CUDA has it
        self.device = number.value
        return 0

    def cudaHostRegister(self, address: ctypes.c_void_p, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:  # noqa: N802
        assert address.value is not None
        assert flags.value == 0
        if not self.answer:
            self.registered[address.value] = size.value
        return self.answer

    def cudaHostUnregister(self, address: ctypes.c_void_p) -> int:  # noqa: N802
        assert address.value is not None
        del self.registered[address.value]
        return 0

    def cudaGetLastError(self) -> int:  # noqa: N802
        self.errors_taken += 1
        return self.answer


@pytest.fixture(autouse=True)
def _silent_so_far() -> None:
    _say.cache_clear()


def test_memory_is_registered_on_its_device_for_as_long_as_it_lives() -> None:
    cuda = Cuda()
    array = page_locked((4, 3, 8, 8), np.uint8, 1, lambda: cuda)
    assert (array.shape, array.dtype.name, int(array.max())) == ((4, 3, 8, 8), "uint8", 0)
    assert cuda.registered == {array.ctypes.data: array.nbytes}
    assert cuda.device == 1
    del array
    gc.collect()
    assert cuda.registered == {}


def test_memory_begins_at_a_page_and_can_be_written() -> None:
    array = page_locked((2, 5), np.float32, library=Cuda)
    array[1] = 7
    assert array.ctypes.data % 4096 == 0
    assert array.sum() == 35


@pytest.mark.parametrize("library", [lambda: None, lambda: object(), lambda: Cuda(801)], ids=["none", "other", "no"])
def test_memory_that_cannot_be_page_locked_is_ordinary_and_says_so_once(
    library: object, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        array = page_locked((3, 2), np.float32, library=library)  # type: ignore[arg-type]
        assert array.tolist() == [[0, 0]] * 3
    assert [(each.levelno, each.message) for each in caplog.records] == [(logging.WARNING, "memory not page-locked")]


def test_an_error_of_cuda_is_not_left_for_others_to_find() -> None:
    cuda = Cuda(801)
    page_locked((3, 2), np.float32, library=lambda: cuda)
    assert cuda.errors_taken == 1


def test_a_library_is_taken_only_where_it_is_loaded_already() -> None:
    assert loaded(["libnobody-has-this.so.1"]) is None


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_the_first_library_that_is_loaded_is_taken() -> None:
    found = loaded(["libnobody-has-this.so.1", "libc.so.6"])
    assert found is not None
    assert found.abs(-3) == 3
