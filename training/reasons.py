"""What is wrong with a recipe, said to whoever wrote it rather than to whoever wrote the models that check it."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

WORDS = {
    "missing": "is missing",
    "tuple_type": "should be a list, such as [a, b]",
    "dict_type": "should be keys and values, such as {name: kd}",
    "model_type": "should be keys and values, such as {name: kd}",
}


def reasons(error: ValidationError, model: type[BaseModel]) -> str:
    """Every key that is wrong, and why, in one line.

    Args:
        error: as pydantic has it.
        model: that was to be made; it knows which keys there would have been.
    """
    return "; ".join(_reason(item["loc"], item["type"], item["msg"], model) for item in error.errors())


def _reason(place: tuple[int | str, ...], kind: str, message: str, model: type[BaseModel]) -> str:
    where = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"{where}: no such key; {meant(str(place[-1]), _keys(place, model))}"
    words = WORDS.get(kind) or message.removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{where}: {words}" if where else words


def meant(name: str, known: Iterable[str]) -> str:
    """What could have been meant by a name, if anything is near it, and what there is otherwise."""
    near = difflib.get_close_matches(name, names := list(known), n=3, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(names)}" if names else "there are none"


def _keys(place: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys that a model has where an unknown one was found."""
    found: type[BaseModel] | None = model
    for part in place[:-1]:
        if found is not None and part in found.model_fields:
            found = next(_models_in(found.model_fields[str(part)].annotation), None)
    return list(found.model_fields) if found is not None else []


def _models_in(annotation: Any) -> typing.Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
