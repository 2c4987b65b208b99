"""The messages of `inference.proto` and `health.proto`, made when the server starts.

The descriptors that `scripts/protos` compiled are loaded into a pool of their own. Python code that protoc generates
would register `inference.*` in the pool that all share, where whatever else brings this protocol to the same process,
such as a client's library, registers the same names and fails; and it would demand one narrow range of protobuf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from cascade.errors import RequestError

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

Message = Any
"""A protobuf message: its class is made at run time, so that there is no type to name."""


def _load() -> descriptor_pool.DescriptorPool:
    compiled = (Path(__file__).parent / "messages.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _load()


def kind(name: str) -> Any:
    """The class of a message.

    Args:
        name: with its package, e.g. `inference.ModelInferRequest`.
    """
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


REQUESTS = {method.name: kind(method.input_type.full_name) for method in _POOL.FindServiceByName(INFERENCE).methods}
"""For each method of the protocol, the class of its request."""

RESPONSES = {method.name: kind(method.output_type.full_name) for method in _POOL.FindServiceByName(INFERENCE).methods}
"""For each method of the protocol, the class of its response."""

HealthRequest = kind("grpc.health.v1.HealthCheckRequest")
HealthResponse = kind("grpc.health.v1.HealthCheckResponse")


def parse(wanted: Any, body: bytes) -> Message:
    """Read a message.

    Args:
        wanted: its class.
        body: its bytes.

    Raises:
        RequestError: it is no such message.
    """
    try:
        return wanted.FromString(body)
    except DecodeError as error:
        raise RequestError(f"the message is no {wanted.DESCRIPTOR.full_name}: {str(error)[:200]}") from error
