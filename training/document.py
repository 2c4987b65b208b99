"""A recipe's file as plain values, before anything in it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cascade.errors import RecipeError


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
    """Put a `key=value` setting, a dotted key and a YAML value, over a document; gives the key.

    Raises:
        RecipeError: it is none, or the key leads through a value.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set takes key=value, not {setting!r}")
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
    *path, last = key.split(".")
    place = document
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{key}: {part!r} holds a value, not keys")
        place = inner
    place[last] = value


def _mapping(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"the recipe {path} must be a mapping of keys to values")
    return document
