"""Rules as one writes them."""

from __future__ import annotations

import pytest

from cascade.errors import RecipeError
from export.rules import Rule, parse

pytestmark = pytest.mark.train

GOOD = {
    "paper": Rule("paper", "paper"),
    "paper(1)": Rule("paper-1", "paper", rho=1.0),
    "accuracy(0.01, 0.1)": Rule("accuracy-1", "accuracy", 0.01, 0.1),
    "agreement(0.005,0.1,average)": Rule("agreement-0.5-average", "agreement", 0.005, 0.1, average=True),
    "cheap = cost(15e6)": Rule("cheap", "cost", budget=15e6),
    "cost(15e6)": Rule("cost-15M", "cost", budget=15e6),
    "latency(0.5)": Rule("latency-0.5ms", "latency", budget=0.5),
}
BAD = [
    "", "accuracy", "accuracy(0.01)", "accuracy(0, 0.1)", "accuracy(0.01, 1)", "accuracy(x, 0.1)", "cost", "cost(-1)",
    "cost(1, average)", "cost(inf)", "paper(0)", "paper(1, 2)", "fast(1)", "a/b=paper", "accuracy(0.01, 0.1",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_a_rule_is_read(text: str) -> None:
    assert parse(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_rule_is_refused_and_the_rules_are_named(text: str) -> None:
    with pytest.raises(RecipeError, match=r"the rules are paper, .*latency\(ms\)"):
        parse(text)


def test_a_suffix_goes_to_names_that_are_not_given() -> None:
    assert parse("paper", "-per-stage").name == "paper-per-stage"
    assert parse("mine=paper", "-per-stage").name == "mine"
