"""A recipe's file as plain values, before anything in it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cascade.errors import RecipeError

STUDENT, STAGE0 = "student", "stage0"


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, and put it over the one that it `extends`, if it does.

    `extends` is a path from the file's own folder. Mappings are merged key by key, anything else is replaced. One
    level: whoever reads a recipe has two files to read, and no more.

    Raises:
        RecipeError: unreadable, not YAML, something else than a mapping, or more than one level.
    """
    document = _mapping(path)
    if "extends" not in document:
        return document
    base = document.pop("extends")
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends names one other recipe by its path, not {base!r}")
    below = _mapping(path.parent / base)
    if "extends" in below:
        raise RecipeError(f"{path} extends {base}, which extends another: extend that one, and put the difference here")
    return merged(below, document)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """One document over another: mappings key by key, anything else replaced."""
    result = dict(below)
    for key, value in above.items():
        there = result.get(key)
        result[key] = merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return result


def put(document: dict[str, Any], setting: str) -> str:
    """Put a `key=value` setting, a dotted key and a YAML value, over a document; gives the key, its student's as such.

    Raises:
        RecipeError: it is none, or the key leads through a value.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set takes key=value, not {setting!r}")
    key = _by_one_name(key)
    try:
        assign(document, key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {key}: {value!r} is not a YAML value") from error
    return key


def assign(document: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key, making the mappings on the way.

    Raises:
        RecipeError: the key leads through a value.
    """
    *path, last = _by_one_name(key).split(".")
    place = document
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{key}: {part!r} holds a value, not keys")
        place = inner
    place[last] = value


def by_one_name(document: dict[str, Any], source: str) -> dict[str, Any]:
    """The same document with its first stage as `student`, where it says `stage0`, as cascades are spoken of.

    Args:
        document: of a recipe, not checked yet.
        source: of it, for errors.

    Raises:
        RecipeError: it says both.
    """
    if STAGE0 not in document:
        return document
    if STUDENT in document:
        raise RecipeError(f"{source}: {STAGE0} is another name of {STUDENT}, and both are given: keep one of them")
    return {STUDENT if key == STAGE0 else key: value for key, value in document.items()}


def _by_one_name(key: str) -> str:
    first, dot, rest = key.partition(".")
    return f"{STUDENT if first == STAGE0 else first}{dot}{rest}"


def _mapping(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"the recipe {path} must be a mapping of keys to values")
    return by_one_name(document, str(path))
