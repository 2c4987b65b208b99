"""What to measure: the load, the cascade's options, and the runs that follow from both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bench.arrivals import Arrivals
from bench.errors import AskedWrongly

OWN = "own"
FULL = "full cascade"
NEVER_EXITS = 1e9
"""Exceeds every energy: at most 1 when logits are summed, at most the number of stages when energies accumulate."""
MAX_CONNECTIONS = 4096
MAX_ARRIVALS = 10_000_000


class Load(BaseModel):
    """How requests are sent.

    Attributes:
        mode: `closed` or `open`.
        connections: most requests in flight; in a closed loop exactly so many.
        requests: how many; `None` where the duration decides.
        duration_s: how long requests are sent, seconds; `None` where their number decides.
        rate_per_s: open loop: mean arrivals a second.
        arrivals: open loop: how they are spaced.
        seed: of the order of the images, and of Poisson arrivals.
        warmup: requests sent before, in a closed loop, and not counted.
        timeout_s: deadline of a request, seconds.
        deadline_ms: what each request tells the server of its own deadline, milliseconds; `None` tells nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["closed", "open"]
    connections: int
    requests: int | None
    duration_s: float | None
    rate_per_s: float | None = None
    arrivals: Arrivals | None = None
    seed: int = 0
    warmup: int = 0
    timeout_s: float = 30.0
    deadline_ms: float | None = None

    @property
    def words(self) -> str:
        """The load in a few words."""
        if self.mode == "closed":
            return f"closed loop, {self.connections} at a time"
        return f"open loop, {self.rate_per_s:g}/s {self.arrivals}, at most {self.connections} at a time"


@dataclass(frozen=True)
class Variation:
    """One setting of the cascade.

    Attributes:
        name: for tables and plots.
        threshold: sent with each request; `None` leaves it to the server.
        max_stage: sent with each request; `None` leaves it to the server.
    """

    name: str
    threshold: float | None = None
    max_stage: int | None = None


def comparison(text: str) -> list[Variation]:
    """The runs of `--compare`: S0 alone, the adaptive cascade at each threshold, the full cascade.

    Args:
        text: `threshold` for the server's own, or `threshold=` and a list of numbers and `own`.

    Raises:
        AskedWrongly: anything else.
    """
    key, _, values = text.partition("=")
    if key != "threshold":
        raise AskedWrongly(f"--compare takes threshold=0.5,0.8 or threshold={OWN}, not {text!r}")
    adaptive = [_adaptive(value.strip()) for value in (values or OWN).split(",")]
    if len({variation.threshold for variation in adaptive}) < len(adaptive):
        raise AskedWrongly(f"--compare names a threshold twice: {text!r}")
    return [Variation("S0 alone", max_stage=0), *adaptive, Variation(FULL, NEVER_EXITS)]


def check(load: Load) -> Load:
    """Refuse a load that cannot be put on a server from here.

    Raises:
        AskedWrongly: a time or a rate is no finite number; too many arrivals to plan in memory, or none at all.
    """
    rate, duration_s = load.rate_per_s, load.duration_s
    if not all(math.isfinite(number or 0.0) for number in (rate, duration_s, load.timeout_s, load.deadline_ms)):
        raise AskedWrongly("--rate, --duration, --timeout and --deadline have to be finite")
    if rate is not None and duration_s is not None:
        expected = rate * duration_s
        if expected > MAX_ARRIVALS:
            raise AskedWrongly(f"--rate times --duration makes {expected:.3g} requests; {MAX_ARRIVALS} are the most")
        if expected < 1:
            raise AskedWrongly("--rate times --duration makes less than one request")
    return load


def _adaptive(value: str) -> Variation:
    if value == OWN:
        return Variation("adaptive")
    try:
        threshold = float(value)
    except ValueError as error:
        raise AskedWrongly(f"--compare: {value!r} is neither a number nor {OWN!r}") from error
    if not math.isfinite(threshold):
        raise AskedWrongly(f"--compare: a threshold has to be finite, not {value}")
    return Variation(f"adaptive {threshold:g}", threshold)
