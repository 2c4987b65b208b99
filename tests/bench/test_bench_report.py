"""Figures, against numbers worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.load import Outcome, Reply
from bench.plan import Load
from bench.report import Exit, Ratios, Report, Times


def answered(latency_s: float = 0.1, stage: int = 0, correct: bool | None = None) -> Outcome:
    return Outcome(10.0, 10.0, 10.0 + latency_s, Reply(stage, 0.9, correct, 10.0 + latency_s))


def failed(kind: str, message: str = "why") -> Outcome:
    return Outcome(10.0, 10.0, 99.0, None, kind, message)


def at(stage: int, count: int) -> Exit:
    return Exit(stage=stage, count=count, share=0.0, accuracy=None)


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [
        (1, 50, 1),
        (1, 99.9, 1),
        (4, 50, 2),
        (5, 50, 3),
        (10, 90, 9),
        (100, 99, 99),
        (100, 99.9, 100),
        (1000, 99.9, 999),
        (1001, 99.9, 1000),
        (10_000, 99.9, 9990),
        (10, 100, 10),
    ],
)
def test_a_percentile_is_the_latency_of_a_rank(count: int, percent: float, rank: int) -> None:
    assert report.percentile(range(1, count + 1), percent) == rank


@given(st.lists(st.floats(0, 1e3), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_a_measured_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = report.percentile(sorted(values), percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-6


def test_times_are_in_milliseconds_and_any_order_will_do() -> None:
    seconds = [0.004, 0.001, 0.003, 0.002]
    expected = Times(mean=2.5, p50=2.0, p90=4.0, p99=4.0, p99_9=4.0, max=4.0)
    found = report.times(seconds)
    assert found is not None
    assert found.model_dump() == pytest.approx(expected.model_dump())
    assert report.times([]) is None


def test_a_failure_has_no_latency() -> None:
    outcomes = [answered(0.5), failed("timeout"), answered(0.25)]
    assert report.latencies_s(outcomes) == [0.5, 0.25]


def test_failures_are_counted_by_kind_with_the_first_message_of_each() -> None:
    outcomes = [failed("timeout", "a"), failed("503", "b"), answered(), failed("503", "c")]
    counts, examples = report.errors(outcomes)
    assert list(counts.items()) == [("503", 2), ("timeout", 1)]
    assert examples == {"503": "b", "timeout": "a"}


def test_a_refusals_time_begins_with_its_sending() -> None:
    refused = Outcome(intended_at=0, started_at=5, finished_at=5.5, kind="503 overloaded")
    assert report.refusals_s([refused, failed("timeout", "a"), answered()]) == [0.5]


def test_throughput_counts_answers_over_the_time_they_took() -> None:
    assert report.throughput(30, 1.5) == 20.0
    assert report.throughput(0, 0.0) == 0.0


def test_exits_are_shares_of_the_answers() -> None:
    outcomes = [answered(stage=0, correct=True), answered(stage=0, correct=False), answered(stage=2), failed("503")]
    assert report.exits(outcomes) == (
        Exit(stage=0, count=2, share=2 / 3, accuracy=0.5),
        Exit(stage=1, count=0, share=0.0, accuracy=None),
        Exit(stage=2, count=1, share=1 / 3, accuracy=None),
    )


def test_stages_that_nothing_left_at_are_listed() -> None:
    assert [item.count for item in report.exits([answered()], stage_count=3)] == [1, 0, 0]
    assert [item.share for item in report.exits([], stage_count=2)] == [0.0, 0.0]


def test_accuracy_is_of_the_answers_whose_label_is_known() -> None:
    assert report.accuracy([True, False, None, True, True]) == 0.75
    assert report.accuracy([None]) is None


def test_an_image_pays_for_every_stage_it_went_through() -> None:
    """Three images pay 100, one pays 100 + 300, one pays 100 + 300 + 600."""
    assert report.mean_macs([at(0, 3), at(1, 1), at(2, 1)], [100, 300, 600]) == (300 + 400 + 1000) / 5


def test_a_cost_is_left_out_where_it_cannot_be_known() -> None:
    assert report.mean_macs([at(0, 0)], [100]) is None
    assert report.mean_macs([at(0, 1)], []) is None
    assert report.mean_macs([at(0, 1), at(1, 1)], [100]) is None


@pytest.mark.parametrize(
    ("macs", "words"), [(0, "0"), (950, "950"), (12_500, "12.5 k"), (40_813_184, "40.81 M"), (4.1e9, "4.1 G")]
)
def test_macs_are_written_with_a_prefix(macs: float, words: str) -> None:
    assert report.macs_in_words(macs) == words


def a_report(throughput: float, p50: float | None, accuracy: float | None, macs: float | None) -> Report:
    latency = None if p50 is None else Times(mean=p50, p50=p50, p90=p50, p99=2 * p50, p99_9=p50, max=p50)
    return Report(
        name="a",
        load=Load(mode="closed", connections=1, requests=1, duration_s=None),
        asked_threshold=None,
        asked_max_stage=None,
        model=None,
        version=None,
        threshold=None,
        interrupted=False,
        requests=1,
        succeeded=1,
        failed=0,
        elapsed_s=1.0,
        throughput_per_s=throughput,
        latency_ms=latency,
        wait_ms=None,
        refusal_ms=None,
        errors={},
        error_examples={},
        exits=(),
        accuracy=accuracy,
        judged=0,
        mean_energy=None,
        mean_macs=macs,
        generator_cpu_share=0.0,
    )


def test_ratios_are_to_the_full_cascade() -> None:
    found = report.ratios(a_report(300.0, 2.0, 0.75, 40.0), a_report(200.0, 8.0, 0.5, 160.0))
    assert found == Ratios(throughput=1.5, p50=0.25, p99=0.25, macs=0.25, accuracy_points=25.0)


def test_ratios_to_nothing_are_left_out() -> None:
    nothing = a_report(0.0, None, None, None)
    empty = Ratios(throughput=None, p50=None, p99=None, macs=None, accuracy_points=None)
    assert report.ratios(a_report(300.0, 2.0, 0.75, 40.0), nothing) == empty
    assert report.ratios(nothing, a_report(300.0, 2.0, 0.75, 40.0)) == empty.model_copy(update={"throughput": 0.0})
