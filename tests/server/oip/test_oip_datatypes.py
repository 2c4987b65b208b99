"""Every datatype survives the way out and back, and nothing passes for what it is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cascade.errors import BadShape, NotFinite
from server.oip.datatypes import (
    BINARY_ONLY,
    FIXED,
    Array,
    from_binary,
    from_json,
    objects,
    read_datatype,
    read_shape,
    to_binary,
    to_json,
)

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, names: list[str]) -> tuple[str, Array]:
    """A datatype and an array of it, with NaN, infinity, subnormals and all."""
    name = draw(st.sampled_from(names))
    return name, draw(arrays.arrays(FIXED[name], SHAPES))


@given(tensors(list(FIXED)))
def test_binary_data_comes_back_bit_by_bit(tensor: tuple[str, Array]) -> None:
    name, array = tensor
    data = to_binary(name, array)
    found = from_binary(name, array.shape, memoryview(data), "it")
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert len(data) == array.size * FIXED[name].itemsize


@given(tensors([name for name in FIXED if name not in BINARY_ONLY]), st.booleans())
def test_finite_json_data_comes_back_flat_or_nested(tensor: tuple[str, Array], nested: bool) -> None:
    name, array = tensor
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)
    text = orjson.dumps(to_json(name, array, "it"), option=orjson.OPT_SERIALIZE_NUMPY)
    flat = orjson.loads(text)
    data = array.tolist() if nested and array.ndim else flat
    found = from_json(name, array.shape, data, "it")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@given(st.lists(st.binary(max_size=9)))
def test_bytes_elements_come_back_from_binary_data(values: list[bytes]) -> None:
    data = to_binary("BYTES", objects(values))
    assert from_binary("BYTES", (len(values),), memoryview(data), "it").tolist() == values
    assert len(data) == sum(4 + len(value) for value in values)


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_strings_come_back_from_json_data(values: list[str]) -> None:
    array = from_json("BYTES", (len(values),), orjson.loads(orjson.dumps(values)), "it")
    assert to_json("BYTES", array, "it") == values


def test_an_element_of_bytes_is_its_length_and_itself() -> None:
    assert to_binary("BYTES", objects([b"3.5:2:cat"])).hex() == "09000000332e353a323a636174"


def test_numbers_are_little_endian_and_row_major() -> None:
    assert to_binary("FP32", np.array([[1.0], [-2.0]], np.float32)).hex() == "0000803f000000c0"
    assert to_binary("INT16", np.array([[1, 2], [3, -1]], np.int16)).hex() == "010002000300ffff"


def test_binary_data_may_begin_anywhere() -> None:
    view = memoryview(b"x" + np.array([1.5], "<f8").tobytes())[1:]
    found = from_binary("FP64", (1,), view, "it")
    assert found.tolist() == [1.5]
    assert found.flags.aligned


# name: (datatype, shape, data, words of the message)
BAD_JSON: dict[str, tuple[str, tuple[int, ...], Any, str]] = {
    "no list": ("FP32", (1,), 1.0, "array"),
    "an object": ("FP32", (1,), {"a": 1}, "array"),
    "too few": ("FP32", (2,), [1.0], "1 elements"),
    "too many": ("FP32", (1,), [1.0, 2.0], "2 elements"),
    "something in nothing": ("FP32", (0,), [1.0], "1 elements"),
    "true among numbers": ("FP32", (2,), [1.0, True], "a boolean"),
    "null": ("FP32", (1,), [None], "null"),
    "text": ("FP32", (1,), ["1"], "a string"),
    "a number for a string": ("BYTES", (1,), [1], "an integer"),
    "a number for a boolean": ("BOOL", (1,), [1], "an integer"),
    "true for an integer": ("INT32", (1,), [True], "a boolean"),
    "a fraction for an integer": ("INT32", (1,), [1.5], "a fraction"),
    "a whole float for an integer": ("INT32", (1,), [1.0], "a fraction"),
    "a negative byte": ("UINT8", (2,), [0, -1], "0 to 255"),
    "a byte too large": ("UINT8", (2,), [256, 0], "0 to 255"),
    "beyond 64 bits": ("UINT64", (1,), [1.8446744073709552e19], "beyond 64 bits"),
    "beyond 32 bits": ("INT32", (1,), [2**31], "2147483647"),
    "beyond FP32": ("FP32", (1,), [1e39], "finite"),
    "beyond any float": ("FP64", (1,), [10**400], "finite"),
    "infinity": ("FP64", (1,), [math.inf], "finite"),
    "FP16": ("FP16", (1,), [1.0], "binary"),
    "BF16": ("BF16", (1,), [1], "binary"),
    "ragged": ("FP32", (2, 2), [[1, 2], [3]], "nested"),
    "nested the other way": ("FP32", (2, 3), [[1, 2], [3, 4], [5, 6]], "nested"),
    "half nested": ("FP32", (2, 1), [[1], 2], "nested"),
    "half flat": ("FP32", (2, 1), [1, [2]], "an array"),
    "too deep": ("FP32", (1,), [[1]], "an array"),
    "far too deep": ("FP32", (1, 1), [[[[1]]]], "an array"),
    "nested in no dimension": ("FP32", (), [[1]], "an array"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_data_that_does_not_fit_is_refused(case: str) -> None:
    datatype, shape, data, words = BAD_JSON[case]
    with pytest.raises(BadShape, match=words) as caught:
        from_json(datatype, shape, data, "input 'x'")
    assert str(caught.value).startswith("input 'x' ")


BAD_BINARY: dict[str, tuple[str, tuple[int, ...], bytes, str]] = {
    "too few": ("FP32", (2,), b"\0" * 7, "7 bytes"),
    "too many": ("FP32", (2,), b"\0" * 9, "9 bytes"),
    "something in nothing": ("FP32", (0, 4), b"\0", "1 bytes"),
    "a boolean of 2": ("BOOL", (2,), b"\1\2", "0 and 1"),
    "no length": ("BYTES", (1,), b"", "0 elements"),
    "half a length": ("BYTES", (1,), b"\1\0", "ends within element 0"),
    "half a length of nothing": ("BYTES", (1,), b"\0\0\0", "ends within element 0"),
    "half an element": ("BYTES", (2,), b"\0\0\0\0\2\0\0\0a", "ends within element 1"),
    "a length beyond all": ("BYTES", (1,), b"\xff\xff\xff\xff", "ends within element 0"),
    "elements too few": ("BYTES", (2,), b"\0\0\0\0", "1 elements"),
    "elements too many": ("BYTES", (1,), b"\0\0\0\0" * 2, "4 bytes left"),
    "elements in nothing": ("BYTES", (0,), b"\0\0\0\0", "4 bytes left"),
}


@pytest.mark.parametrize("case", BAD_BINARY)
def test_binary_data_that_does_not_fit_is_refused(case: str) -> None:
    datatype, shape, data, words = BAD_BINARY[case]
    with pytest.raises(BadShape, match=words):
        from_binary(datatype, shape, memoryview(data), "it")


@pytest.mark.parametrize(
    "value", [None, "1", 1, {}, [1.0], [True], ["1"], [-1], [[1]], [0] * 9, [2**21] * 2, [0, 2**41]]
)
def test_a_shape_is_a_short_list_of_whole_numbers(value: Any) -> None:
    with pytest.raises(BadShape, match=r"shape|dimensions"):
        read_shape(value, "it")


def test_a_shape_may_have_no_dimension_or_an_empty_one() -> None:
    assert read_shape([], "it") == ()
    assert read_shape([0, 3, 2**30], "it") == (0, 3, 2**30)


@pytest.mark.parametrize("value", [None, 1, ["FP32"], "fp32", "FP8", ""])
def test_a_datatype_is_one_of_those_there_are(value: Any) -> None:
    with pytest.raises(BadShape, match="FP32"):
        read_datatype(value, "it")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused_with_the_way_out(value: float) -> None:
    with pytest.raises(NotFinite, match="ask for binary"):
        to_json("FP32", np.array([0, value], np.float32), "it")


def test_bytes_that_are_no_text_are_refused_with_the_way_out() -> None:
    with pytest.raises(NotFinite, match="ask for binary"):
        to_json("BYTES", objects([b"\xff"]), "it")


def test_numbers_are_written_no_longer_than_their_type_needs() -> None:
    data = to_json("FP32", np.array([0.1], np.float32), "it")
    assert orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY) == b"[0.1]"
