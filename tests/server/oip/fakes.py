"""A server of one tiny cascade behind the protocol's routes, whose answers are made up and easily known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field

import httpx
from fastapi import FastAPI, Request

from cascade.errors import CascadeError, UnknownModel
from cascade.manifest import Manifest
from server.oip.documents import Counters, IndexRow, ModelCounters, Spent
from server.oip.model import Question
from server.oip.ports import Limits, Model, Outcome, Result
from server.oip.routes import router
from tests.server.oip.makers import MANIFEST, outcome

LIMITS = Limits(images=4, body_bytes=20_000, max_wait_us=2000)


@dataclass(frozen=True)
class FakeModel:
    """One version of the cascade."""

    name: str = "cascade"
    version: str = "1"
    manifest: Manifest = MANIFEST
    ready: bool = True


@dataclass
class FakeModels:
    """Answers every image with the logits 0, 1, 2, 3 and a stage that is its place in the batch.

    Attributes:
        models: current version first.
        questions: that were asked, with their deadlines.
        calls: of the repository.
        failure: raised where a model is asked, loaded or unloaded.
        locked: raised where the repository is asked for.
    """

    models: Sequence[FakeModel] = (FakeModel(version="2"), FakeModel())
    ready: bool = True
    limits: Limits = LIMITS
    server_version: str = "0.1.0"
    questions: list[tuple[Question, float | None]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    failure: Exception | None = None
    locked: Exception | None = None

    def get(self, name: str, version: str | None) -> Model:
        """Look a version up."""
        for model in self.models:
            if model.name == name and version in (None, model.version):
                return model
        raise UnknownModel(f"there is no model {name!r} of version {version or 'any'}")

    def all(self) -> Sequence[Model]:
        """Every version."""
        return self.models

    def hold(self, request: Request, model: Model | None = None) -> AbstractContextManager[object]:
        """No request is too many."""
        return nullcontext()

    async def read_body(self, request: Request) -> bytes:
        """Whatever comes."""
        return await request.body()

    async def run(self, work: Callable[[], Result], size: int) -> Result:
        """In a thread, whatever the size."""
        return await asyncio.to_thread(work)

    async def predict(
        self, model: Model, question: Question, deadline_s: float | None
    ) -> tuple[float, Sequence[Outcome]]:
        """Answer, or fail."""
        self.questions.append((question, deadline_s))
        self._act()
        logits = range(len(model.manifest.labels))
        return 0.6, [outcome(*logits, stage=place) for place in range(question.count)]

    def statistics(self) -> Sequence[ModelCounters]:
        """Counts of both versions."""
        counters = Counters(last_inference_ms=1, inferences=8, executions=3, success=Spent(2, 500))
        return [ModelCounters("cascade", model.version, counters, (counters, Counters())) for model in self.models]

    def check_control(self, request: Request) -> None:
        """Let everybody in, or nobody."""
        if self.locked is not None:
            raise self.locked

    async def index(self) -> Sequence[IndexRow]:
        """One that serves and one that does not."""
        return [IndexRow("cascade", "2", "READY"), IndexRow("other", "1", "UNAVAILABLE", "unloaded")]

    async def load(self, name: str) -> None:
        """Note it."""
        self._act(f"load {name}")

    async def unload(self, name: str) -> None:
        """Note it."""
        self._act(f"unload {name}")

    def _act(self, *calls: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls += calls


@asynccontextmanager
async def protocol(models: FakeModels | None = None, app: FastAPI | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has the protocol's routes and no other."""
    app = FastAPI(redirect_slashes=False) if app is None else app
    app.include_router(router)
    app.state.oip = FakeModels() if models is None else models
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
        yield client


class Denied(CascadeError):
    """A caller without credentials."""

    status = 401
    code = "denied"
