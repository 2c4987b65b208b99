"""The protocol's methods. No logic: each asks one object one thing, as the routes of HTTP do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.oip import documents, infer
from server.oip.ports import Model, Models, Outcome
from server.oip.routes import FLOAT_BYTES
from server.rpc import tensors
from server.rpc.calls import Answer, Call
from server.rpc.documents import check_load_request, check_unload_request, document, statistics
from server.rpc.messages import REQUESTS, Message, parse
from server.rpc.port import Check

OPEN = ("ServerLive", "ServerReady", "ModelReady")
"""Methods that anybody may call, as probes do."""


class Service:
    """GRPCInferenceService.

    Args:
        models: that are served.
        check: looks at the metadata of every call but the open ones.
    """

    def __init__(self, models: Models, check: Check) -> None:
        self._models, self._check = models, check

    def answers(self) -> Mapping[str, Answer]:
        """What answers each method; whatever is not here is not implemented."""
        known: dict[str, Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
        }
        return {name: answer if name in OPEN else self._guarded(answer) for name, answer in known.items()}

    def _guarded(self, answer: Answer) -> Answer:
        async def check_first(call: Call) -> bytes:
            self._check(call.request.headers)
            return await answer(call)

        return check_first

    async def _read(self, method: str, call: Call) -> Message:
        """The message of a call that is held no longer than it takes to read it."""
        with self._models.hold(call.request):
            return parse(REQUESTS[method], await self._models.read_body(call.request))

    def _get(self, message: Message) -> Model:
        return self._models.get(message.name, message.version or None)

    async def _server_live(self, _: Call) -> bytes:
        return document("ServerLive", {"live": True})

    async def _server_ready(self, _: Call) -> bytes:
        return document("ServerReady", {"ready": self._models.ready})

    async def _model_ready(self, call: Call) -> bytes:
        model = self._get(await self._read("ModelReady", call))
        return document("ModelReady", {"ready": model.ready})

    async def _server_metadata(self, _: Call) -> bytes:
        return document("ServerMetadata", documents.server_metadata(self._models.server_version))

    async def _model_metadata(self, call: Call) -> bytes:
        model = self._get(await self._read("ModelMetadata", call))
        versions = [other.version for other in self._models.all() if other.name == model.name]
        return document("ModelMetadata", documents.model_metadata(model.name, versions, model.manifest))

    async def _model_config(self, call: Call) -> bytes:
        model, limits = self._get(await self._read("ModelConfig", call)), self._models.limits
        config = documents.model_config(model.name, model.manifest, limits.images, limits.max_wait_us)
        return document("ModelConfig", {"config": config})

    async def _model_statistics(self, call: Call) -> bytes:
        message = await self._read("ModelStatistics", call)
        if not message.name:
            return statistics(documents.statistics(self._models.statistics(), stages=True))
        model, counts = self._get(message), self._models.statistics()
        chosen = [count for count in counts if (count.name, count.version) == (model.name, model.version)]
        return statistics(documents.statistics(chosen))

    async def _model_infer(self, call: Call) -> bytes:
        models = self._models
        with models.hold(call.request):
            body = await models.read_body(call.request)
            message = await models.run(partial(parse, REQUESTS["ModelInfer"], body), len(body))
            model = models.get(message.model_name, message.model_version or None)
            asked = await models.run(partial(tensors.read, message, model.manifest, models.limits), len(body))
            threshold, outcomes = await self._predict(model, asked, call.time_left_s)
            write = partial(tensors.write, asked, model, threshold, outcomes)
            return await models.run(write, len(outcomes) * len(model.manifest.labels) * FLOAT_BYTES)

    async def _predict(
        self, model: Model, asked: infer.Asked, left_s: float | None
    ) -> tuple[float | None, Sequence[Outcome]]:
        """Ask, for as long as the client waits. An empty batch has an empty answer, for which nothing need run."""
        if not asked.question.count:
            return None, ()
        limits: list[Any] = [limit for limit in (asked.question.timeout_s, left_s) if limit is not None]
        return await self._models.predict(model, asked.question, min(limits, default=None))

    async def _repository_index(self, call: Call) -> bytes:
        self._models.check_control(call.request)
        message = await self._read("RepositoryIndex", call)
        return document("RepositoryIndex", {"models": documents.index(await self._models.index(), message.ready)})

    async def _repository_model_load(self, call: Call) -> bytes:
        self._models.check_control(call.request)
        message = await self._read("RepositoryModelLoad", call)
        check_load_request(message)
        await self._models.load(message.model_name)
        return document("RepositoryModelLoad", {})

    async def _repository_model_unload(self, call: Call) -> bytes:
        self._models.check_control(call.request)
        message = await self._read("RepositoryModelUnload", call)
        check_unload_request(message)
        await self._models.unload(message.model_name)
        return document("RepositoryModelUnload", {})
