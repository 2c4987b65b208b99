"""What a profile is to keep, as one writes it on the command line: `accuracy(0.01, 0.1)`, `cheap=cost(15e6)`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from cascade.errors import RecipeError
from cascade.fields import Name

Kind = Literal["paper", "accuracy", "agreement", "cost", "latency"]

FORMS = (
    "paper, paper(rho), accuracy(eps, delta), agreement(eps, delta), cost(macs), latency(ms), each with NAME= before "
    "it if you like; accuracy and agreement take `average` as a third word"
)
WRITTEN = re.compile(r"(?:(?P<name>[^=()]*)=\s*)?(?P<kind>[a-z]+)(?:\((?P<arguments>[^()]*)\))?")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: of the profile.
        kind: which rule.
        eps: what may be lost, in (0, 1): accuracy or agreement.
        delta: probability that more is lost, in (0, 1).
        average: keep it on average over all samples only, not among those that leave at each stage.
        budget: mean MACs, or mean milliseconds, a sample.
        rho: share of the cascade's mean energy.
    """

    name: str
    kind: Kind
    eps: float = 0.0
    delta: float = 0.0
    average: bool = False
    budget: float = 0.0
    rho: float = 0.9

    @property
    def promises(self) -> bool:
        """Whether it is kept with a probability, and not only on the samples it was chosen on."""
        return self.kind in ("accuracy", "agreement")


def parse(text: str, suffix: str = "") -> Rule:
    """Read one rule.

    Args:
        text: as it is written.
        suffix: of names that are not given.

    Raises:
        RecipeError: it is none; says what there is.
    """
    found = WRITTEN.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"{text!r} is no rule; the rules are {FORMS}")
    kind, arguments = found["kind"], [part.strip() for part in (found["arguments"] or "").split(",") if part.strip()]
    average = "average" in arguments
    try:
        numbers = [float(part) for part in arguments if part != "average"]
        rule = _rule(kind, numbers, average)
        return replace(rule, name=_named((found["name"] or rule.name + suffix).strip()))
    except ValueError as error:
        raise RecipeError(f"{text!r}: {error}; the rules are {FORMS}") from error


def _rule(kind: str, numbers: list[float], average: bool) -> Rule:
    if kind in ("accuracy", "agreement") and len(numbers) == 2:
        eps, delta = numbers
        if not (0 < eps < 1 and 0 < delta < 1):
            raise ValueError("eps and delta lie between 0 and 1")
        name = f"{kind}-{100 * eps:g}" + ("-average" if average else "")
        return Rule(name, "accuracy" if kind == "accuracy" else "agreement", eps, delta, average)
    if average:
        raise ValueError("`average` goes with accuracy(eps, delta) and agreement(eps, delta)")
    if kind in ("cost", "latency") and len(numbers) == 1:
        if not 0 < numbers[0] < float("inf"):
            raise ValueError("a budget is above 0")
        name = f"cost-{numbers[0] / 1e6:g}M" if kind == "cost" else f"latency-{numbers[0]:g}ms"
        return Rule(name, "cost" if kind == "cost" else "latency", budget=numbers[0])
    if kind == "paper" and len(numbers) <= 1:
        rho = numbers[0] if numbers else 0.9
        if not 0 < rho < float("inf"):
            raise ValueError("rho is above 0")
        return Rule("paper" if rho == 0.9 else f"paper-{rho:g}", "paper", rho=rho)
    raise ValueError("no rule of that name takes so many numbers")


def _named(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ValueError(f"{name!r} is no name: letters, digits, dots, dashes and underscores") from error
