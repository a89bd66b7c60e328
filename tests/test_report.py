"""The cost report compares estimates with actual costs; what has not been measured yet is `pending`, not 0."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import Counts, Usage
from fluxbudgetd.policy import report
from fluxbudgetd.wire.messages import ReportDeferred, ReportStage
from harness.values import NOW, a_record, a_triage, launched

SECOND = 1_000_000


def used(given: int, made: int, cache: int = 0, *, rows: int = 1, pending: int = 0) -> Counts:
    return Counts(records=rows, pending=pending, input=given, output=made, cache_read=cache, cache_creation=1)


NOTHING_YET = Counts(records=2, pending=2)


def test_report_of_a_review() -> None:
    triage = a_triage(
        launched("interflux:fd-a", 100),
        launched("fd-b", 200, source="interstat", sliced=True),
        launched("fd-c", 300, stage=2),
        launched("fd-d", 400, stage=2, action="Deferred (budget)"),
        budget=700,
    )
    found = report.of_triage(triage, {"fd-a": used(100, 50, 1000), "fd-b": used(99, 1), "fd-c": NOTHING_YET})
    assert (found.budget, found.budget_type, found.cost_basis, found.estimated_total) == (700, "plan", "billing", 600)
    assert (found.actual_billing, found.actual_total, found.cache_read_total) == (250, 1252, 1000)
    assert (found.pending, found.partial) == (("fd-c",), True)
    one, two, three = found.agents
    assert (one.name, one.stage, one.estimated) == ("interflux:fd-a", 1, 100)
    assert (one.actual_billing, one.actual_total, one.cache_read, one.delta_pct) == (150, 1151, 1000, 50)
    assert (one.source, one.slicing_applied, one.partial) == ("default", False, False)
    assert (two.delta_pct, two.source, two.slicing_applied) == (-50, "interstat", True)
    assert {three.actual_billing, three.actual_total, three.cache_read, three.delta_pct} == {"pending"}
    assert found.deferred == (
        ReportDeferred(name="fd-d", stage=2, estimated=400, reason="budget", actual_billing=None),
    )
    assert found.by_stage == {
        "stage_1": ReportStage(agents=2, estimated=300, actual=250, partial=False),
        "stage_2": ReportStage(agents=1, estimated=300, actual="pending", partial=False),
    }


def test_cost_basis_total() -> None:
    """Deltas and stages use the cost basis of the triage."""
    found = report.of_triage(a_triage(launched("a", 100), cost_basis="total"), {"a": used(10, 20, 169)})
    assert (found.agents[0].delta_pct, found.by_stage["stage_1"].actual) == (100, 200)
    assert (found.actual_billing, found.actual_total) == (30, 200)


@pytest.mark.parametrize("arrived", [None, NOTHING_YET])
def test_report_without_measurements(arrived: Counts | None) -> None:
    """Without rows, or with rows without tokens, every actual number is `pending`."""
    found = report.of_triage(a_triage(launched("a", 100)), {} if arrived is None else {"a": arrived})
    numbers = (found.actual_billing, found.actual_total, found.cache_read_total, found.by_stage["stage_1"].actual)
    assert set(numbers) == {"pending"}
    assert (found.pending, found.partial, found.agents[0].partial) == (("a",), False, False)


def test_report_with_some_measurements() -> None:
    """Incomplete sums are marked: the agent's, its stage's and the total."""
    found = report.of_triage(a_triage(launched("a", 100)), {"a": used(10, 0, rows=2, pending=1)})
    assert (found.agents[0].actual_billing, found.agents[0].partial, found.pending) == (10, True, ())
    assert (found.partial, found.by_stage["stage_1"].partial) == (True, True)
    assert (found.by_stage["stage_2"].agents, found.by_stage["stage_2"].actual) == (0, 0)


def test_measured_zero_is_not_pending() -> None:
    found = report.of_triage(a_triage(launched("a", 100)), {"a": Counts(records=1)})
    assert (found.agents[0].actual_billing, found.agents[0].delta_pct, found.pending) == (0, -100, ())


@pytest.mark.parametrize(
    ("actual", "estimated", "expected"),
    [
        (150, 100, 50), (50, 100, -50), (100, 100, 0), (0, 100, -100), (350, 100, 250),
        (1004, 1000, 0), (1005, 1000, 1), (996, 1000, 0), (995, 1000, -1), (1, 3, -67), (2, 3, -33),
        (0, 0, None), (7, 0, None),
    ],
)  # fmt: skip
def test_delta_in_percent(actual: int, estimated: int, expected: int | None) -> None:
    assert report.delta_pct(actual, estimated) == expected
    found = report.of_triage(a_triage(launched("a", estimated)), {"a": used(actual, 0)})
    assert found.agents[0].delta_pct == expected


def test_deferred_agent_that_ran_is_not_in_the_sums() -> None:
    """Its usage is shown all the same."""
    triage = a_triage(launched("a", 10), launched("b", 20, 2, "Deferred (budget)"), launched("c", 30, 1, "Blocked"))
    found = report.of_triage(triage, {"a": used(1, 0), "b": used(5, 5), "c": NOTHING_YET})
    assert [(one.name, one.reason, one.actual_billing) for one in found.deferred] == [
        ("b", "budget", 10),
        ("c", "blocked", None),
    ]
    assert (found.estimated_total, found.actual_billing, found.pending, found.partial) == (10, 1, (), False)


def test_only_rows_after_the_triage_count() -> None:
    triage = a_triage(at=NOW + SECOND // 2)
    records = [
        a_record(key=1, at=NOW + SECOND // 2, agent="interflux:fd-a", input=1),
        a_record(key=2, at=NOW + SECOND, agent="fd-a", output=20, cache_read=5, cache_creation=7),
        a_record(key=3, at=NOW + SECOND // 2 - 1, agent="fd-a", input=300),
        a_record(key=4, at=None, agent="fd-a", pending=True),
        a_record(key=5, at=NOW + 9 * SECOND, agent="fd-b", input=4000),
    ]
    whole = Counts(records=3, pending=1, input=1, output=20, cache_read=5, cache_creation=7)
    assert report.actuals(triage, records) == {"fd-a": whole, "fd-b": Counts(records=1, input=4000)}


@pytest.mark.parametrize(
    ("at", "key", "since"),
    [
        (NOW + 700_000, 1, True), (NOW + 699_999, 99, False), (NOW + SECOND, 1, True), (NOW - SECOND, 99, False),
        # If a row has no time, or one cut to the second of the triage, the order of the rows decides.
        (NOW, 5, False), (NOW, 6, True), (None, 5, False), (None, 6, True),
    ],
)  # fmt: skip
def test_time_may_be_cut_to_the_second(at: int | None, key: int, since: bool) -> None:
    triage = a_triage(at=NOW + 700_000, last_key=5)
    assert bool(report.actuals(triage, [a_record(at=at, key=key)])) == since
    if at is None or at == NOW:
        assert report.actuals(msgspec.structs.replace(triage, last_key=None), [a_record(at=at, key=key)])


@given(
    st.lists(st.integers(0, 3 * SECOND), min_size=2, max_size=2).map(sorted),
    st.lists(st.integers(0, 9), min_size=2, max_size=2).map(sorted),
    st.lists(st.none() | st.integers(-1, 4).map(lambda at: at * SECOND) | st.integers(0, 4 * SECOND), max_size=10),
)
def test_every_row_belongs_to_one_review(moments: list[int], keys: list[int], times: list[int | None]) -> None:
    """Each row after the first of two reviews is part of the actual costs of exactly one of them."""
    first, second = (
        a_triage(launched("a", 1), at=NOW + at, last_key=key) for at, key in zip(moments, keys, strict=True)
    )
    records = [a_record(key=i, at=None if at is None else NOW + at, input=2**i) for i, at in enumerate(times)]
    found = report.of_run(None, "billing", [first, second], {"s": records})
    arrived = [one.actual_billing for one in found.agents if one.actual_billing != "pending"]
    assert sum(arrived) == report.actuals(first, records).get("a", Counts()).billing
    assert len(found.agents) in (1, 2)


def a_row(seconds: int, agent: str, tokens: int, **fields: Any) -> Usage:
    return a_record(key=seconds, at=NOW + seconds * SECOND + 1, agent=agent, input=tokens, **fields)


def test_report_of_all_reviews_of_a_run() -> None:
    one = a_triage(launched("a", 100), launched("b", 50, 2, "Deferred (budget)"))
    two = a_triage(launched("a", 70, 2), id="triage-2", at=NOW + 5 * SECOND)
    records = [a_row(1, "a", 10, cache_read=5), a_row(9, "a", 20)]
    found = report.of_run(900, "billing", [one, two], {"s": records})
    assert (found.budget, found.budget_type, found.cost_basis) == (900, "run", "billing")
    assert (found.estimated_total, found.actual_billing, found.actual_total, found.cache_read_total) == (170, 30, 35, 5)
    assert [(agent.name, agent.estimated, agent.actual_billing) for agent in found.agents] == [
        ("a", 100, 10),
        ("a", 70, 20),
    ]
    assert [one.name for one in found.deferred] == ["b"]
    assert found.by_stage["stage_1"] == ReportStage(agents=1, estimated=100, actual=10, partial=False)
    assert found.by_stage["stage_2"] == ReportStage(agents=1, estimated=70, actual=20, partial=False)
    assert report.of_run(None, "billing", [], {}).estimated_total == 0


def test_review_that_was_repeated_before_it_began_does_not_count() -> None:
    one, two = a_triage(launched("a", 100)), a_triage(launched("a", 70), id="triage-2", at=NOW + 5 * SECOND)
    again = report.of_run(None, "billing", [one, two], {})
    assert [agent.estimated for agent in again.agents] == [70]
    assert again.pending == ("a",)
    elsewhere = msgspec.structs.replace(two, session="other")
    assert len(report.of_run(None, "billing", [one, elsewhere], {}).agents) == 2
    records = [a_row(1, "a", 0, pending=True), a_row(9, "a", 5)]
    begun = report.of_run(None, "billing", [one, two], {"s": records})
    assert [agent.actual_billing for agent in begun.agents] == ["pending", 5]
    assert (begun.actual_billing, begun.partial) == (5, True)


def test_slow_agent_counts_for_its_own_review() -> None:
    """Its row is inserted when it ends, which may be after the next review began."""
    one = a_triage(launched("slow", 100))
    two = a_triage(launched("b", 70), id="triage-2", at=NOW + 5 * SECOND)
    waiting = report.of_run(None, "billing", [one, two], {})
    assert waiting.pending == ("slow", "b")
    records = [a_row(20, "slow", 90), a_row(20, "b", 60)]
    found = report.of_run(None, "billing", [one, two], {"s": records})
    assert [(agent.name, agent.actual_billing) for agent in found.agents] == [("slow", 90), ("b", 60)]
    assert (found.estimated_total, found.actual_billing) == (170, 150)


def test_report_of_a_run_is_in_its_cost_basis() -> None:
    """Its reviews were cut by different limits, so their estimates were in different units."""
    lines = [launched("a", 100, est_total=1000), launched("b", 10, action="Deferred (budget)", est_total=300)]
    of_type = a_triage(*lines, id="t1", session="s")
    of_run = a_triage(
        *(msgspec.structs.replace(line, est_tokens=line.est_total) for line in lines),
        id="t2", session="t", cost_basis="total",
    )  # fmt: skip
    rows: dict[str | None, list[Usage]] = {session: [a_row(1, "a", 150, cache_read=1350)] for session in ("s", "t")}
    found = report.of_run(5000, "total", [of_type, of_run], rows)
    assert [(agent.estimated, agent.delta_pct) for agent in found.agents] == [(1000, 50), (1000, 50)]
    assert [agent.estimated for agent in found.deferred] == [300, 300]
    assert found.estimated_total == 2000
    assert found.by_stage["stage_1"] == ReportStage(agents=2, estimated=2000, actual=3000, partial=False)


def test_review_of_an_earlier_version_keeps_its_cost_basis() -> None:
    """It has estimates in no other, even if the run does."""
    triage = a_triage(launched("a", 1000, est_billing=None, est_total=None), cost_basis="total")
    found = report.of_run(5000, "billing", [triage], {"s": [a_row(1, "a", 100, cache_read=900)]})
    assert found.by_stage["stage_1"] == ReportStage(agents=1, estimated=1000, actual=1000, partial=False)
    assert found.agents[0].delta_pct == 0


def test_huge_sums_are_capped() -> None:
    most = 2**63 - 1
    lines = [launched(name, most) for name in "ab"]
    found = report.of_triage(a_triage(*lines), {name: used(most, most, most) for name in "ab"})
    assert {found.estimated_total, found.actual_billing, found.actual_total, found.cache_read_total} == {most}
    assert report.delta_pct(most, 1) == most
