"""The server as the Open Inference Protocol wants it: what `server.oip` asks for, over the engine of `/predict`."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from prometheus_client.metrics_core import Metric
from starlette.requests import Request

from cascade.errors import BundleError
from cascade.exits import Threshold
from server.codec import Question
from server.control import Control
from server.gate import Gate
from server.intake import Guest
from server.metrics import Metrics
from server.models import Model, Models
from server.oip.documents import BatchSpent, Counters, IndexRow, ModelCounters, Spent
from server.oip.model import Question as Asked
from server.oip.ports import Limits
from server.outcome import Outcome
from server.predict import LIGHT_BYTES, Predictor
from server.settings import ServerSettings

Result = TypeVar("Result")
GUEST = "rescade.guest"


class Served(typing.Protocol):
    """What is asked of whatever serves the models."""

    models: Models
    predictor: Predictor
    metrics: Metrics
    control: Control

    @property
    def ready(self) -> bool:
        """Whether every model is warm and no drain has begun."""
        ...


class Protocol:
    """Everything the protocol's routes ask.

    Args:
        settings: limits.
        served: whose models are asked, counted and managed.
        gate: says who may manage them.
    """

    def __init__(self, settings: ServerSettings, served: Served, gate: Gate) -> None:
        self.limits = Limits(settings.max_images, settings.max_body_bytes, round(settings.max_wait_ms * 1000))
        self.server_version = version_of("rescade")
        self._served, self._predictor, self._gate = served, served.predictor, gate

    @property
    def ready(self) -> bool:
        """Whether every model can answer now."""
        return self._served.ready

    def get(self, name: str, version: str | None) -> Model:
        """One version of a model; without one, the current.

        Raises:
            UnknownModel: there is none of that name, or none of that version.
        """
        return self._served.models.get(name, version)

    def all(self) -> Sequence[Model]:
        """Every version of every model; of each model, the current one first."""
        return self._served.models.all()

    @contextmanager
    def hold(self, request: Request, model: Model | None = None) -> Iterator[None]:
        """Keep a request among those in hand until it is answered, and the model that it asks open.

        Raises:
            Overloaded: too many are in hand.
            ClientDisconnect: nobody waits for the answer any more.
        """
        with self._predictor.intake.guest(request.receive) as guest, model or nullcontext():
            request.scope[GUEST] = guest
            yield

    async def read_body(self, request: Request) -> bytes:
        """The whole body, as it was sent.

        Raises:
            CascadeError: it is too large or too slow, or there is no room for it.
        """
        guest: Guest = request.scope[GUEST]
        return await self._predictor.intake.read(guest, request.headers.get("Content-Length", ""))

    async def run(self, work: Callable[[], Result], size: int) -> Result:
        """Do some work, in a thread if it goes over many bytes."""
        if size <= LIGHT_BYTES:
            return work()
        return await self._predictor.in_thread(work, self._predictor.deadline(None))

    async def predict(
        self, model: Model, question: Asked, deadline_s: float | None
    ) -> tuple[Threshold, Sequence[Outcome]]:
        """Ask a model about at least one image.

        Args:
            model: whom.
            question: what.
            deadline_s: seconds from now that the client will wait.

        Raises:
            CascadeError: it cannot be answered, or not in time.
        """
        deadline = self._predictor.deadline(None)
        if deadline_s is not None:
            deadline = min(deadline, time.monotonic() + deadline_s)
        asked = Question(question.options, question.images, question.inputs, question.pixels)
        answer = await self._predictor.ask(model, asked, deadline)
        return answer.threshold, answer.outcomes

    def statistics(self) -> list[ModelCounters]:
        """Counts of every model, over all workers; versions that follow each other share them."""
        samples = _Samples(self._served.metrics.collect())
        return [_counters(samples, model) for model in self._served.models.all()]

    def check_control(self, request: Request) -> None:
        """Refuse whoever may not see or change the repository.

        Raises:
            NotFound: nobody may.
            Unauthorized: a key is needed.
            Forbidden: it is the wrong one.
        """
        self._gate.check_admin(request.scope)

    async def index(self) -> list[IndexRow]:
        """Every version there is, and those there should be."""
        return [IndexRow(row.name, row.version, row.state, row.reason) for row in await self._served.control.index()]

    async def load(self, name: str) -> None:
        """Serve what is on the disk of one name, in every process.

        Raises:
            NotFound: there is nothing of that name.
            BundleError: it is broken; what was served of it still is.
        """
        rows = await self._served.control.load(name)
        if broken := [row for row in rows if row.result == "broken" and row.name in (name, "")]:
            raise BundleError(broken[0].folder, broken[0].reason)

    async def unload(self, name: str) -> None:
        """Take a name out, in every process.

        Raises:
            NotFound: it is not served.
            Conflict: it is the last one.
        """
        await self._served.control.unload(name)


class _Samples:
    """Prometheus' figures by name and labels."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> int:
        """A count; 0 where nothing was counted."""
        return int(self._values.get((f"rescade_{name}", tuple(sorted(labels.items()))), 0))

    def spent(self, count: str, seconds: str, **labels: str) -> Spent:
        """A count, and the time that goes with it."""
        total = self._values.get((f"rescade_{seconds}", tuple(sorted(labels.items()))), 0.0)
        return Spent(self.value(count, **labels), round(total * 1e9))

    def sizes(self, **labels: str) -> dict[int, int]:
        """How many runs had each batch size, to the bucket: its upper bound stands for all in it."""
        wanted, found, before = set(labels.items()), {}, 0
        buckets = [
            (float(dict(key)["le"]), value)
            for (name, key), value in self._values.items()
            if name == "rescade_batch_size_bucket" and wanted <= set(key)
        ]
        for bound, value in sorted(buckets):
            if value > before and bound != float("inf"):
                found[int(bound)] = int(value) - before
            before = int(value)
        return found


def _counters(samples: _Samples, model: Model) -> ModelCounters:
    stages = [_stage(samples, model.name, str(stage)) for stage in range(len(model.manifest.stages))]
    first = stages[0]
    infer = _sum(stage.compute_infer for stage in stages)
    total = Counters(
        last_inference_ms=1000 * samples.value("last_inference_seconds", model=model.name),
        inferences=sum(stage.inferences for stage in stages)
        + samples.value("unanswered_total", model=model.name, reason="truncated"),
        executions=first.executions,
        success=samples.spent("inferences_total", "inference_seconds_total", model=model.name, outcome="success"),
        fail=samples.spent("inferences_total", "inference_seconds_total", model=model.name, outcome="fail"),
        queue=_sum(stage.queue for stage in stages),
        compute_input=_untimed(infer),
        compute_infer=infer,
        compute_output=_untimed(infer),
        batches=first.batches,
    )
    return ModelCounters(model.name, model.version, total, stages)


def _stage(samples: _Samples, name: str, stage: str) -> Counters:
    labels = {"model": name, "stage": stage}
    run = samples.spent("run_seconds_count", "run_seconds_sum", **labels)
    sizes = samples.sizes(**labels)
    mean = run.ns // max(1, run.count)
    return Counters(
        inferences=samples.value("exits_total", **labels),
        executions=run.count,
        success=Spent(samples.value("exits_total", **labels), run.ns),
        queue=samples.spent("queue_seconds_count", "queue_seconds_sum", **labels),
        compute_input=_untimed(run),
        compute_infer=run,
        compute_output=_untimed(run),
        batches={size: _batch(Spent(count, count * mean)) for size, count in sizes.items()},
    )


def _batch(run: Spent) -> BatchSpent:
    return BatchSpent(_untimed(run), run, _untimed(run))


def _untimed(run: Spent) -> Spent:
    """What is done around each run and not timed by itself; load generators want to see it as often as the run."""
    return Spent(run.count)


def _sum(parts: Iterable[Spent]) -> Spent:
    counts, times = zip(*((part.count, part.ns) for part in parts), strict=True)
    return Spent(sum(counts), sum(times))


def version_of(package: str) -> str:
    """Of a package, or 0 where it is not installed but just run from its folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"
