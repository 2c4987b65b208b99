"""One inference: from headers and body to a question, and from outcomes to a reply. All of it fit for a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cascade.exits import Threshold
from cascade.manifest import Manifest
from server.oip.compression import decompress
from server.oip.model import Question, input_of, read_outputs, read_question
from server.oip.ports import Limits, Model, Outcome
from server.oip.request import HEADER, RequestedOutput, read_request
from server.oip.response import Reply, compressed, response_parameters, tensors, write_response


@dataclass(frozen=True)
class Asked:
    """A request, read to the end.

    Attributes:
        id: to be echoed, if there is one.
        question: for the cascade.
        outputs: to give.
    """

    id: str | None
    question: Question
    outputs: Sequence[RequestedOutput]


def read(body: bytes, headers: Mapping[str, str], manifest: Manifest, limits: Limits) -> Asked:
    """Read a request.

    Args:
        body: as it was sent.
        headers: of the request; looked up by names in any case.
        manifest: of the model that is asked.
        limits: of every request.

    Raises:
        RequestError: or one of its kinds, that says what to send instead.
    """
    plain = decompress(body, headers.get("Content-Encoding"), limits.body_bytes)
    request = read_request(plain, headers.get(HEADER), input_of(manifest))
    outputs = read_outputs(request, manifest)
    return Asked(request.id, read_question(request, manifest, limits.images), outputs)


def write(
    asked: Asked, model: Model, threshold: Threshold | None, outcomes: Sequence[Outcome], headers: Mapping[str, str]
) -> Reply:
    """Write the answer.

    Args:
        asked: what was asked.
        model: who answered.
        threshold: that was used; None for an empty batch.
        outcomes: one an image, in order.
        headers: of the request.

    Raises:
        NotFinite: an output is asked for as JSON and holds what JSON cannot say.
    """
    outputs = tensors(outcomes, model.manifest, asked.outputs)
    said = response_parameters(threshold, outcomes)
    reply = write_response(model.name, model.version, asked.id, said, outputs)
    return compressed(reply, headers.get("Accept-Encoding"))
