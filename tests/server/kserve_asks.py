"""What KServe's clients hear from a server, as JSON: `kserve_asks.py URL GRPC_ADDRESS IMAGES.npy`, run in .clients."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(images: Any, binary: bool) -> Any:
    """These images, as bytes or as numbers."""
    tensor = InferInput(name="image", shape=list(images.shape), datatype="FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return InferRequest(model_name="tiny", infer_inputs=[tensor])


def heard(response: Any) -> dict[str, Any]:
    """Outputs by name; a label is bytes where it came as such."""
    arrays = {output.name: output.as_numpy() for output in response.outputs}
    return {name: (array.astype(str) if array.dtype == object else array).tolist() for name, array in arrays.items()}


async def over_http(url: str, images: Any) -> dict[str, Any]:
    """What the client for REST hears."""
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        health = [await client.is_server_live(url), await client.is_server_ready(url)]
        models = [await client.is_model_ready(url, name) for name in ("tiny", "nobody")]
        forms = [await client.infer(url, request(images, binary), model_name="tiny") for binary in (True, False)]
        try:
            refusal = str(await client.infer(url, request(images, True), model_name="nobody"))
        except Exception as error:  # what it raises is httpx's
            refusal = str(error)
    return {"health": health, "models": models, "answers": [heard(form) for form in forms], "refusal": refusal}


async def over_grpc(address: str, images: Any) -> dict[str, Any]:
    """What the client for gRPC hears."""
    async with InferenceGRPCClient(url=address) as client:
        health = [await client.is_server_live(), await client.is_server_ready()]
        models = [await client.is_model_ready("tiny")]
        forms = [await client.infer(request(images, binary)) for binary in (True, False)]
    return {"health": health, "models": models, "answers": [heard(form) for form in forms]}


async def main(url: str, address: str, path: str) -> None:
    """Ask both."""
    images = np.load(path)
    print(json.dumps({"http": await over_http(url, images), "grpc": await over_grpc(address, images)}))


asyncio.run(main(*sys.argv[1:]))
