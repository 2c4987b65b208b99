"""Options mean the same from a query string and from JSON, and everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cascade.errors import RequestError
from server.options import Options, read_options


def test_nothing_given_means_the_defaults() -> None:
    assert read_options([]) == Options(threshold=None, max_stage=None, top_k=1, logits=False)


def test_text_and_values_mean_the_same() -> None:
    text = [("threshold", "-0.5"), ("max_stage", "2"), ("top_k", "3"), ("logits", "TRUE")]
    values = [("threshold", -0.5), ("max_stage", 2), ("top_k", 3), ("logits", True)]
    assert read_options(text) == read_options([], values) == Options(-0.5, 2, 3, True)


def test_a_flag_may_be_a_digit_in_text() -> None:
    assert [read_options([("logits", value)]).logits for value in ("1", "0", "false")] == [True, False, False]


BAD_TEXT = {
    "unknown": ("treshold", "1"),
    "word": ("threshold", "high"),
    "empty": ("threshold", ""),
    "nan": ("threshold", "nan"),
    "infinite": ("threshold", "1e999"),
    "fraction": ("max_stage", "1.5"),
    "negative": ("max_stage", "-1"),
    "none": ("top_k", "0"),
    "digits": ("top_k", "9" * 5000),
    "maybe": ("logits", "maybe"),
}
BAD_VALUES: dict[str, tuple[str, Any]] = {
    "unknown": ("labels", True),
    "text": ("threshold", "0.5"),
    "true": ("threshold", True),
    "null": ("threshold", None),
    "huge": ("threshold", 10**400),
    "digits": ("threshold", 10**5000),
    "fraction": ("top_k", 1.0),
    "flag": ("max_stage", False),
    "number": ("logits", 1),
    "list": ("logits", []),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_text_that_is_no_option_is_refused_by_name(case: str) -> None:
    with pytest.raises(RequestError, match=BAD_TEXT[case][0]):
        read_options([BAD_TEXT[case]])


@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_are_no_option_are_refused_by_name(case: str) -> None:
    with pytest.raises(RequestError, match=BAD_VALUES[case][0]):
        read_options([], [BAD_VALUES[case]])


def test_an_option_may_be_given_once_wherever_it_stands() -> None:
    with pytest.raises(RequestError, match="top_k is given twice"):
        read_options([("top_k", "1"), ("top_k", "1")])
    with pytest.raises(RequestError, match="top_k is given twice"):
        read_options([("top_k", "1")], [("top_k", 1)])


def test_an_error_shows_no_more_of_a_value_than_fits_on_a_line() -> None:
    with pytest.raises(RequestError) as caught:
        read_options([("threshold", "x" * 10_000)])
    assert len(str(caught.value)) < 150
