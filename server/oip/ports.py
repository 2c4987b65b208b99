"""What the protocol's routes need of the server. `app.state.oip` has to hold one `Models`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from starlette.requests import Request

from cascade.exits import Floats
from cascade.manifest import Manifest
from server.oip.documents import IndexRow, ModelCounters
from server.oip.model import Question

Result = TypeVar("Result")


class Outcome(Protocol):
    """What the cascade says about one image."""

    @property
    def logits(self) -> Floats:
        """(K,) float32, the sum of the stages that ran."""

    @property
    def stage(self) -> int:
        """Where the sample left."""

    @property
    def energy(self) -> float:
        """The energy that was tested there."""

    @property
    def truncated(self) -> bool:
        """Whether it left before the rule let it."""


class Model(Protocol):
    """One version of a model."""

    @property
    def name(self) -> str:
        """Of the model, as in its address."""

    @property
    def version(self) -> str:
        """As in its address."""

    @property
    def manifest(self) -> Manifest:
        """Of its bundle."""

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""


@dataclass(frozen=True)
class Limits:
    """What one request may be, and how long a batch waits.

    Attributes:
        images: in one request.
        body_bytes: of one body, once decompressed.
        max_wait_us: longest wait for a batch to fill, microseconds.
    """

    images: int
    body_bytes: int
    max_wait_us: int = 0


class Models(Protocol):
    """All models that are served, and the means to ask them."""

    @property
    def limits(self) -> Limits:
        """Of every request."""

    @property
    def server_version(self) -> str:
        """Of rescade."""

    @property
    def ready(self) -> bool:
        """Whether every model that is required can answer now."""

    def get(self, name: str, version: str | None) -> Model:
        """One version of a model; without one, the current.

        Raises:
            UnknownModel: there is none of that name, or none of that version.
        """

    def all(self) -> Sequence[Model]:
        """Every version of every model; of each model, the current one first."""

    def hold(self, request: Request, model: Model | None = None) -> AbstractContextManager[object]:
        """Keep a request among those in hand until it is answered, and end it if its client goes away.

        Args:
            request: to be read and answered meanwhile.
            model: that it asks, which stays open as long, even if another version takes its place.

        Raises:
            Overloaded: too many are in hand.
            ClientDisconnect: nobody waits for the answer any more.
        """

    async def read_body(self, request: Request) -> bytes:
        """The whole body of a request that is held, as it was sent, compressed or not, within the server's limits.

        Raises:
            CascadeError: it is too large or too slow, or there is no room for it.
        """

    async def run(self, work: Callable[[], Result], size: int) -> Result:
        """Do some work: away from the event loop, if `size`, the bytes it goes over, makes that worth it."""

    async def predict(
        self, model: Model, question: Question, deadline_s: float | None
    ) -> tuple[float, Sequence[Outcome]]:
        """Ask a model about at least one image.

        Args:
            model: whom.
            question: what.
            deadline_s: seconds from now that the client will wait; None for the server's own limit.

        Returns:
            The threshold that was used, and one outcome an image, in order.

        Raises:
            CascadeError: it cannot be answered, or not in time.
        """

    def statistics(self) -> Sequence[ModelCounters]:
        """Counts of every version of every model, over all workers."""

    def check_control(self, request: Request) -> None:
        """Refuse whoever may not see or change the repository.

        Raises:
            CascadeError: this caller may not.
        """

    async def index(self) -> Sequence[IndexRow]:
        """Every version in the repository, whether it is served or not."""

    async def load(self, name: str) -> None:
        """Load a model, or load it again; return once it serves, and on failure leave what was there.

        Raises:
            CascadeError: it cannot be loaded.
        """

    async def unload(self, name: str) -> None:
        """End a model; return once it is gone.

        Raises:
            CascadeError: it cannot be unloaded.
        """
