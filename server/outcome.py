"""What is asked of an engine and what it answers: a request's images, and an outcome for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cascade.exits import Floats
from server.tracing import Trace


class Outcome(NamedTuple):
    """What the cascade says about one image.

    Attributes:
        logits: (K,) float32, the sum of the stages that ran.
        shares: (K,) float32, their softmax.
        stage: where the sample left.
        energy: the energy that was tested there.
        run_s: seconds spent in the networks, with its batch mates.
        truncated: whether it left because time ran out, before the exit rule let it.
    """

    logits: Floats
    shares: Floats
    stage: int
    energy: float
    run_s: float
    truncated: bool = False


Answered = Callable[[Sequence[Outcome] | Exception], None]


@dataclass(slots=True)
class Request:
    """Images of one caller, waiting or running.

    Attributes:
        ids: of its samples.
        left: how many of them have no outcome yet.
        outcomes: one an image, in order.
        answered: told once, of all outcomes or of what went wrong; never after `Engine.withdraw`.
        trace: told of every run that holds one of the images.
        over: whether nothing more will be told.
    """

    ids: range
    left: int
    outcomes: list[Any]
    answered: Answered
    trace: Trace | None = None
    over: bool = False

    def settle(self, position: int, outcome: Outcome) -> None:
        """Take one outcome; the last one answers the request."""
        self.outcomes[position] = outcome
        self.left -= 1
        if not self.left:
            self.over = True
            self.answered(self.outcomes)
