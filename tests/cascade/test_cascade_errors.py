"""The tree of errors that the module draws is the one that its classes form."""

from __future__ import annotations

import inspect
import re

import pytest

from cascade import errors
from cascade.errors import BundleError, CascadeError

CLASSES = {
    name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, CascadeError)
}


def drawn() -> list[tuple[str, int, int]]:
    """Name, depth and status of each line of the drawing."""
    lines = re.findall(r"^ {4}([│├└─ ]*)(\w+) +(\d{3})\b", errors.__doc__ or "", re.MULTILINE)
    return [(name, len(branch) // 4, int(status)) for branch, name, status in lines]


def test_every_error_is_drawn_once() -> None:
    assert sorted(name for name, _, _ in drawn()) == sorted(CLASSES)


@pytest.mark.parametrize(("name", "depth", "status"), drawn())
def test_an_error_has_the_place_and_the_status_that_are_drawn(name: str, depth: int, status: int) -> None:
    error = CLASSES[name]
    assert error.status == status
    assert error.__mro__.index(CascadeError) == depth


def test_parents_are_drawn_above_their_children() -> None:
    path: list[str] = []
    for name, depth, _ in drawn():
        path[depth:] = [name]
        assert [entry.__name__ for entry in reversed(CLASSES[name].__mro__[: depth + 1])] == path


def test_codes_are_short_stable_names_and_tell_errors_apart() -> None:
    codes = [error.code for error in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_clients_are_blamed_for_requests_and_not_for_the_service() -> None:
    assert all(400 <= error.status < 500 for error in CLASSES.values() if issubclass(error, errors.RequestError))
    assert all(500 <= error.status < 600 for error in CLASSES.values() if issubclass(error, errors.ServiceError))


def test_a_bundle_error_says_where_and_what() -> None:
    error = BundleError("stages[1].sha256", "is not the digest")
    assert str(error) == "stages[1].sha256: is not the digest"
    assert error.field == "stages[1].sha256"
