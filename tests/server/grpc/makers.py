"""Messages of inference."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from server.rpc.messages import REQUESTS, Message


def infer(array: NDArray[Any], datatype: str = "FP32", model: str = "cascade", **fields: Any) -> Message:
    """A request for one raw tensor."""
    message = REQUESTS["ModelInfer"](model_name=model, raw_input_contents=[array.tobytes()], **fields)
    message.inputs.add(name="image", datatype=datatype, shape=array.shape)
    return message


def raw(response: Message, name: str) -> bytes:
    """An output's bytes."""
    names = [output.name for output in response.outputs]
    found: bytes = response.raw_output_contents[names.index(name)]
    return found
