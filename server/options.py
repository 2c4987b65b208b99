"""What a request may ask for beside its images, from a query string, form fields or JSON alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cascade.errors import RequestError
from server.waiting import ORDINARY


@dataclass(frozen=True)
class Options:
    """Options of one request.

    Attributes:
        threshold: energy to be exceeded; None for the server's.
        max_stage: the last stage that may run; None, or more than there are, for the last there is.
        top_k: how many classes to name, best first; more than there are names all.
        logits: whether to give the logits.
        allow_truncated: whether an answer of the stages that ran is better than none when time runs out.
        profile: name of the bundle's thresholds to use; not with a threshold.
        priority: whose turn it is: 1 before 2 before 3, at every stage; 0 is as 2.
    """

    threshold: float | None = None
    max_stage: int | None = None
    top_k: int = 1
    logits: bool = False
    allow_truncated: bool = False
    profile: str | None = None
    priority: int = 0

    @property
    def turn(self) -> int:
        """The priority, with the ordinary one where none was given."""
        return self.priority or ORDINARY


def read_options(text: Iterable[tuple[str, str]], values: Iterable[tuple[str, Any]] = ()) -> Options:
    """Check options.

    Args:
        text: names and values from a query string or form fields.
        values: names and values from JSON.

    Raises:
        RequestError: an option is unknown, given twice, or of the wrong kind, or two of them say the same thing.
    """
    found: dict[str, Any] = {}
    for pairs, kinds in ((text, FROM_TEXT), (values, FROM_JSON)):
        for name, value in pairs:
            if name not in kinds:
                raise RequestError(f"unknown option {_shown(name)}: the options are {', '.join(kinds)}")
            if name in found:
                raise RequestError(f"option {name} is given twice: give it once")
            found[name] = kinds[name](name, value)
    if "threshold" in found and "profile" in found:
        raise RequestError("threshold and profile are both given: give one, since a profile is a threshold by name")
    return Options(**found)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RequestError(f"{name} must be a finite number, not {_shown(value)}")
    return number


def _whole(least: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name} must be a whole number of at least {least}, not {_shown(value)}")
        return value

    return check


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name} must be a name, not {_shown(value)}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, not {_shown(value)}")
    return value


def _parsed(parse: Callable[[str], Any], check: Callable[[str, Any], Any]) -> Callable[[str, str], Any]:
    """Parse the text of an option if it parses, and let `check` speak if it does not."""

    def read(name: str, value: str) -> Any:
        try:
            return check(name, parse(value))
        except ValueError:
            return check(name, value)

    return read


def _truth(value: str) -> Any:
    return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits has no decimal form
        text = "that"
    return text if len(text) <= 60 else text[:57] + "..."


FROM_JSON: dict[str, Callable[[str, Any], Any]] = {
    "threshold": _number,
    "max_stage": _whole(0),
    "top_k": _whole(1),
    "logits": _flag,
    "allow_truncated": _flag,
    "profile": _name,
    "priority": _whole(0),
}
FROM_TEXT: dict[str, Callable[[str, str], Any]] = {
    "threshold": _parsed(float, FROM_JSON["threshold"]),
    "max_stage": _parsed(int, FROM_JSON["max_stage"]),
    "top_k": _parsed(int, FROM_JSON["top_k"]),
    "logits": _parsed(_truth, FROM_JSON["logits"]),
    "allow_truncated": _parsed(_truth, FROM_JSON["allow_truncated"]),
    "profile": FROM_JSON["profile"],
    "priority": _parsed(int, FROM_JSON["priority"]),
}
