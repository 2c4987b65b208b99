"""Host memory that a GPU copies from by itself: page-locked, so that no copy goes by way of the driver's own.

The pages are registered with the CUDA runtime that onnxruntime has loaded, and with none that would have to be looked
for. Where that cannot be had the memory is ordinary: the answers are the same, and only copying takes longer.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

logger = logging.getLogger(__name__)

SONAMES = ("libcudart.so.13", "libcudart.so.12")


def loaded(sonames: Sequence[str] = SONAMES) -> ctypes.CDLL | None:
    """The first of these libraries that this process has loaded already; None if there is none."""
    for soname in sonames:
        try:
            return ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue
    return None


def page_locked(
    shape: tuple[int, ...], dtype: DTypeLike, number: int = 0, library: Callable[[], Any] = loaded
) -> NDArray[Any]:
    """An array of zeros, page-locked for as long as it lives if that can be.

    Args:
        shape: of the array.
        dtype: of its elements.
        number: of the GPU.
        library: gives the CUDA runtime.

    Source: CUDA Runtime API, `cudaHostRegister`.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size)  # whole pages of its own: none that is registered is shared with anything else
    array = np.ndarray(shape, dtype, buffer=pages)
    address = ctypes.c_void_p(array.ctypes.data)
    try:
        cuda = library()
        code = cuda.cudaSetDevice(ctypes.c_int(number)) or cuda.cudaHostRegister(
            address, ctypes.c_size_t(size), ctypes.c_uint(0)
        )
    except AttributeError:  # no library, or one that is something else
        _say("there is no CUDA runtime in this process")
        return array
    if code:
        cuda.cudaGetLastError()  # takes it back: whoever asks next would think that it was theirs
        _say(f"CUDA's answer is error {code}")
        return array
    release = weakref.finalize(array, cuda.cudaHostUnregister, address)
    release.atexit = False  # a process that ends gives everything back at once
    return array


@functools.cache
def _say(why: str) -> None:
    """Log, once a process."""
    logger.warning("memory not page-locked", extra={"fields": {"why": why, "effect": "copies to the GPU take longer"}})
