"""A recipe's file as plain values, before anything in it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cascade.errors import RecipeError


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        RecipeError: unreadable, not YAML, or something else.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"the recipe {path} must be a mapping of keys to values")
    return document


def put(document: dict[str, Any], setting: str) -> None:
    """Put a `key=value` setting, a dotted key and a YAML value, over a document.

    Raises:
        RecipeError: it is none, or the key leads through a value.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set takes key=value, not {setting!r}")
    *path, last = key.split(".")
    place = document
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {key}: {part!r} holds a value, not keys")
        place = inner
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {key}: {value!r} is not a YAML value") from error
