"""The protocol's datatypes: JSON data and binary data to checked arrays, and back.

Binary data is little-endian, row-major and without padding; a BYTES element is a 4-byte length and then that many
bytes. JSON data is flat or nested to the shape. Reading is strict: a boolean is no number, a number with a fraction or
an exponent is no integer, and what lies outside a type's range is refused rather than wrapped around.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BadShape, NotFinite

Array = NDArray[Any]
Shape = tuple[int, ...]

FIXED: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(np.uint16),  # numpy has no such float: the raw bits
}
"""Datatypes whose elements have one size, with the numpy type that holds them."""

NAMES = (*FIXED, "BYTES")
BINARY_ONLY = ("FP16", "BF16")
MAX_RANK = 8
MAX_ELEMENTS = 2**40  # more than a body can hold, and few enough for numpy to count
LENGTH_BYTES = 4

_KINDS: Mapping[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true and false"),
    "u": (frozenset({int}), "integers"),
    "i": (frozenset({int}), "integers"),
    "f": (frozenset({int, float}), "numbers"),
    "O": (frozenset({str}), "strings"),
}
_SAID: Mapping[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a fraction or an integer beyond 64 bits",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def read_shape(value: Any, where: str) -> Shape:
    """Check the shape of a tensor.

    Args:
        value: what stands at `shape`.
        where: the tensor, for the message.

    Raises:
        BadShape: it is no list of whole numbers, or describes more than any request can hold.
    """
    sides = value if isinstance(value, list) else None
    if sides is None or any(type(side) is not int or side < 0 for side in sides):
        raise BadShape(f"{where} needs a shape: an array of integers of at least 0, batch included")
    if len(sides) > MAX_RANK:
        raise BadShape(f"{where} has {len(sides)} dimensions: there may be {MAX_RANK}")
    if math.prod(max(side, 1) for side in sides) > MAX_ELEMENTS:
        raise BadShape(f"{where} has a shape of too many elements: send fewer at once")
    return tuple(sides)


def read_datatype(value: Any, where: str) -> str:
    """Check the name of a datatype.

    Raises:
        BadShape: there is none of that name.
    """
    if not isinstance(value, str) or value not in NAMES:
        raise BadShape(f"{where} needs a datatype: one of {', '.join(NAMES)}")
    return value


def from_json(datatype: str, shape: Shape, data: Any, where: str) -> Array:
    """Read a tensor from decoded JSON.

    Args:
        datatype: one of `NAMES`.
        shape: of the tensor.
        data: what stands at `data`: a list, flat or nested to the shape.
        where: the tensor, for the message.

    Returns:
        An array of that shape; one of BYTES holds `bytes` objects, the UTF-8 of each string.

    Raises:
        BadShape: the data is not of that datatype and shape.
    """
    if datatype in BINARY_ONLY:
        raise BadShape(f"{where} is {datatype}, which has no JSON form: send it as binary data")
    flat = _flat(data, shape, where)
    if len(flat) != math.prod(shape):
        raise BadShape(f"{where} has {len(flat)} elements, but its shape {list(shape)} holds {math.prod(shape)}")
    dtype = FIXED.get(datatype, np.dtype(object))
    kinds, words = _KINDS[dtype.kind]
    if not (found := set(map(type, flat))) <= kinds:
        others = " and ".join(sorted(_SAID[kind] for kind in found - kinds))
        raise BadShape(f"{where} is {datatype} and may hold {words} alone, but its data holds {others}")
    return _checked(datatype, dtype, flat, where).reshape(shape)


def _flat(data: Any, shape: Shape, where: str) -> list[Any]:
    """Data in one list. Only as many levels are opened as the shape has."""
    if not isinstance(data, list):
        raise BadShape(f"{where} needs its data in an array")
    if not data or not isinstance(data[0], list):
        return data
    rows = [data]
    for side in shape:
        if any(not isinstance(row, list) or len(row) != side for row in rows):
            raise BadShape(
                f"{where} has data nested otherwise than its shape {list(shape)}: nest it so, or send it flat"
            )
        rows = list(chain.from_iterable(rows))
    return rows


def _checked(datatype: str, dtype: np.dtype[Any], flat: list[Any], where: str) -> Array:
    if dtype.kind == "O":
        return objects([text.encode() for text in flat])
    if dtype.kind == "f":
        return _finite(datatype, dtype, flat, where)
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if flat and (min(flat) < least or max(flat) > most):
            raise BadShape(f"{where} is {datatype} and may hold integers from {least} to {most} alone")
    return np.array(flat, dtype)


def _finite(datatype: str, dtype: np.dtype[Any], flat: list[Any], where: str) -> Array:
    with np.errstate(over="ignore"):
        try:
            array = np.array(flat, np.float64).astype(dtype)
        except OverflowError:  # an integer beyond any float
            array = np.array([np.inf], dtype)
    if not np.isfinite(array).all():
        raise BadShape(f"{where} must be finite as {datatype}: numbers beyond its range are refused")
    return array


def from_binary(datatype: str, shape: Shape, data: memoryview, where: str) -> Array:
    """Read a tensor from its bytes.

    Args:
        datatype: one of `NAMES`.
        shape: of the tensor.
        data: all of its bytes, and no others.
        where: the tensor, for the message.

    Returns:
        An array of that shape, a copy; one of BYTES holds `bytes` objects.

    Raises:
        BadShape: the bytes are not those of that datatype and shape.
    """
    wanted = math.prod(shape)
    if datatype == "BYTES":
        return objects(_elements(data, wanted, where)).reshape(shape)
    dtype = FIXED[datatype]
    if len(data) != wanted * dtype.itemsize:
        raise BadShape(
            f"{where} has {len(data)} bytes, but {datatype} of shape {list(shape)} has {wanted * dtype.itemsize}"
        )
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise BadShape(f"{where} is BOOL and may hold the bytes 0 and 1 alone")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _elements(data: memoryview, wanted: int, where: str) -> list[bytes]:
    """Take BYTES apart; never more elements than wanted, however many there are."""
    found: list[bytes] = []
    place = 0
    while place < len(data) and len(found) < wanted:
        begin = place + LENGTH_BYTES
        place = begin + int.from_bytes(data[place:begin], "little")
        if max(begin, place) > len(data):
            raise BadShape(f"{where} ends within element {len(found)}: each is a 4-byte length and that many bytes")
        found.append(bytes(data[begin:place]))
    if place < len(data):
        raise BadShape(f"{where} has {len(data) - place} bytes left after the {wanted} elements of its shape")
    if len(found) < wanted:
        raise BadShape(f"{where} has {len(found)} elements, but its shape holds {wanted}")
    return found


def objects(values: Sequence[bytes]) -> Array:
    """A BYTES array, (N,), of these elements."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def to_json(datatype: str, array: Array, where: str) -> Array | list[str]:
    """Give a tensor's data for JSON: flat, since one of the clients reads no deeper.

    Args:
        datatype: one of `NAMES` that has a JSON form.
        array: of any shape.
        where: the tensor, for the message.

    Raises:
        NotFinite: it holds what JSON cannot say.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if datatype == "BYTES":
        try:
            return [element.decode() for element in flat]
        except UnicodeDecodeError as error:
            raise NotFinite(
                f"{where} holds bytes that are no UTF-8, which JSON cannot say: ask for binary data"
            ) from error
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise NotFinite(f"{where} holds NaN or infinity, which JSON cannot say: ask for binary data")
    return flat


def to_binary(datatype: str, array: Array) -> bytes:
    """Give a tensor's bytes."""
    if datatype == "BYTES":
        return b"".join(len(element).to_bytes(LENGTH_BYTES, "little") + element for element in array.reshape(-1))
    dtype = FIXED[datatype].newbyteorder("<")
    return array.astype(dtype, copy=False).tobytes()
