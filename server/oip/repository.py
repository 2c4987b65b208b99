"""The bodies of the three repository requests. Nothing is uploaded: models come from the server's own folders."""

from __future__ import annotations

from typing import Any

import orjson

from cascade.errors import RequestError
from server.oip.parameters import read_flag, read_parameters


def read_index_filter(body: bytes) -> bool:
    """Whether only models that are ready are asked for.

    Args:
        body: empty, or `{"ready": true}`.

    Raises:
        RequestError: it is neither.
    """
    ready = _document(body).get("ready", False)
    if not isinstance(ready, bool):
        raise RequestError('"ready" must be true or false')
    return ready


def check_load(body: bytes) -> None:
    """Refuse a load that brings something of its own.

    Args:
        body: empty, or an object without parameters.

    Raises:
        RequestError: it holds parameters.
    """
    parameters = _document(body).get("parameters")
    if isinstance(parameters, dict) and parameters:
        raise RequestError(
            f"a load takes no parameters, not {next(iter(parameters))[:60]!r}: files and configuration come from the "
            "bundle's folder on the server"
        )
    read_parameters(parameters, (), "the load")


def check_unload(body: bytes) -> None:
    """Check an unload. No model depends on another, so `unload_dependents` may be either.

    Args:
        body: empty, or `{"parameters": {"unload_dependents": false}}`.

    Raises:
        RequestError: it holds something else.
    """
    where = "the unload"
    parameters = read_parameters(_document(body).get("parameters"), ("unload_dependents",), where)
    read_flag(parameters, "unload_dependents", False, where)


def _document(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the JSON of the body cannot be read: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise RequestError("the body must be empty or a JSON object")
    return document
