"""The protocol's `parameters` objects. A name that is not known is refused, so that a slip of the pen is not silent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from cascade.errors import RequestError

Parameters = Mapping[str, str | int | float | bool]

IGNORED = ("content_type",)  # some clients say here what the datatype says already
_REFUSED = {
    "sequence_": "sequences are not offered, every request stands alone: leave it out",
    "triton_": "names that begin so are reserved: leave it out",
    "shared_memory_": "shared memory is not offered: send and ask for data in the body",
}


def read_parameters(value: Any, known: Collection[str], where: str) -> Parameters:
    """Check an object of parameters.

    Args:
        value: what stands at `parameters`; None for nothing.
        known: names there may be.
        where: whose they are, for the message.

    Returns:
        Names and values, without those that are ignored.

    Raises:
        RequestError: a name is unknown, or a value is no string, number or boolean.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"the parameters of {where} must be an object of names and values")
    for name, given in value.items():
        if name not in known and name not in IGNORED:
            raise RequestError(f"parameter {name[:60]!r} of {where}: {_why(name, known)}")
        if not isinstance(given, str | int | float):
            raise RequestError(f"parameter {name!r} of {where} must be a string, a number or a boolean")
    return {name: given for name, given in value.items() if name not in IGNORED}


def _why(name: str, known: Collection[str]) -> str:
    for beginning, why in _REFUSED.items():
        if name.startswith(beginning):
            return why
    return f"there is none of that name; there are {', '.join(known)}"


def read_flag(parameters: Parameters, name: str, default: bool, where: str) -> bool:
    """A parameter that is true or false.

    Raises:
        RequestError: it is neither.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"parameter {name!r} of {where} must be true or false")
    return value


def read_whole(parameters: Parameters, name: str, least: int, where: str) -> int | None:
    """A parameter that is a whole number; None where it is not given.

    Raises:
        RequestError: it is no whole number, or less than the least.
    """
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestError(f"parameter {name!r} of {where} must be an integer of at least {least}")
    return value
