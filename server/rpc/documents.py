"""The protocol's documents as messages. What HTTP writes as JSON is read into the message of the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf import json_format

from server.oip.repository import check_load, check_unload
from server.rpc.messages import RESPONSES, Message

NOTHING_YET = ("response_stats", "memory_usage")  # always empty, and so not among the messages


def document(method: str, fields: Mapping[str, Any]) -> bytes:
    """The response of a method.

    Args:
        method: of the protocol.
        fields: of its response, as `server.oip.documents` makes them.
    """
    message = json_format.Parse(orjson.dumps(fields), RESPONSES[method]())
    body: bytes = message.SerializeToString()
    return body


def statistics(found: Mapping[str, Any]) -> bytes:
    """The response of ModelStatistics.

    Args:
        found: as HTTP gives it.
    """
    models = [
        {name: value for name, value in model.items() if name not in NOTHING_YET} for model in found["model_stats"]
    ]
    return document("ModelStatistics", {"model_stats": models})


def check_load_request(message: Message) -> None:
    """Refuse a load that brings something of its own.

    Args:
        message: RepositoryModelLoadRequest.

    Raises:
        RequestError: it holds parameters.
    """
    check_load(_control(message))


def check_unload_request(message: Message) -> None:
    """Check an unload.

    Args:
        message: RepositoryModelUnloadRequest.

    Raises:
        RequestError: it holds parameters that are not known.
    """
    check_unload(_control(message))


def _control(message: Message) -> bytes:
    """The request as HTTP would have it, for which there is a check already; bytes stand for files, their name says."""
    values = {}
    for name, value in message.parameters.items():
        choice = value.WhichOneof("parameter_choice")
        values[name] = getattr(value, choice) if choice in ("bool_param", "int64_param", "string_param") else None
    return orjson.dumps({"parameters": values})
