"""The rules for runs, balances and attribution."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import Counts, Timeline
from fluxbudgetd.policy import attribution, budget, phases, runs
from fluxbudgetd.wire.messages import RunSet, RunStart
from harness.values import NOW, a_record, a_run

DEFAULTS = RunDefaults()


@pytest.mark.parametrize(
    ("complexity", "expected"), [(None, 250_000), (1, 50_000), (2, 100_000), (3, 250_000), (4, 500_000), (5, 1_000_000)]
)
def test_default_budgets(complexity: int | None, expected: int) -> None:
    assert runs.new_run(RunStart(project_dir="/p", complexity=complexity), "r", NOW, DEFAULTS).token_budget == expected


def test_defaults_of_a_run() -> None:
    run = a_run()
    assert run.phases[0] == run.phase == "brainstorm"
    assert run.phases[-1] == "done"
    assert (run.warn_pct, run.enforcement, run.cost_basis, run.status) == (80, "soft", "billing", "active")
    assert {phases.macro_stage(phase) for phase in run.phases} == set(phases.MACRO_STAGES)


@pytest.mark.parametrize(
    "fields",
    [
        {"token_budget": 0}, {"token_budget": -1}, {"token_budget": 2**63}, {"complexity": 0}, {"complexity": 6},
        {"warn_pct": 0}, {"warn_pct": 100}, {"enforcement": "firm"}, {"cost_basis": "cache"}, {"phases": ()},
        {"phases": ("a", "a")}, {"phases": ("a|b",)}, {"phases": ("",)}, {"phases": ("a\n",)}, {"scope": ""},
        {"scope": "x" * 513}, {"goal": "x" * 4097}, {"project_dir": "relative"}, {"project_dir": ""},
    ],
)  # fmt: skip
def test_invalid_run_is_refused(fields: dict[str, object]) -> None:
    asked = msgspec.structs.replace(RunStart(project_dir="/p"), **fields)
    with pytest.raises(BadInputError) as caught:
        runs.new_run(asked, "r", NOW, DEFAULTS)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a/b", "a\n", "ü", ".", "..", ".a", "-a", ":a"])
def test_invalid_run_id_is_refused(name: str) -> None:
    with pytest.raises(BadInputError):
        runs.new_run(RunStart(project_dir="/p"), name, NOW, DEFAULTS)


@pytest.mark.parametrize(
    ("spent", "expected"),
    [(0, "ok"), (79_999, "ok"), (80_000, "warning"), (99_999, "warning"), (100_000, "exceeded"), (200_000, "exceeded")],
)
def test_state_of_a_balance(spent: int, expected: str) -> None:
    assert budget.state(a_run(token_budget=100_000), spent) == expected


@given(
    st.integers(1, 2**63 - 1), st.integers(0, 2**70), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 99)
)
def test_balance_is_consistent(tokens: int, measured: int, provisional: int, reserved: int, warn: int) -> None:
    """Whatever the numbers, the rest is within the budget, and percentage and state agree with the spend."""
    at = budget.balance(a_run(token_budget=tokens, warn_pct=warn), measured, provisional, reserved)
    assert at.remaining == max(0, tokens - at.spent - reserved)
    assert at.pct is not None
    if at.pct >= 100:
        assert at.state == "exceeded"
    if at.state == "ok":
        assert at.spent * 100 < tokens * warn
    assert (at.state == "exceeded") == (at.spent >= tokens)
    unlimited = budget.balance(a_run(token_budget=None), measured, provisional, reserved)
    assert (unlimited.remaining, unlimited.pct, unlimited.state) == (None, None, "unlimited")


def test_percent_is_rounded_down() -> None:
    assert budget.percent(79_999, 100_000) == 79.9
    assert budget.percent(80_000, 100_000) == 80.0


def test_implied_attachment_is_the_earliest_row_with_a_known_bead() -> None:
    one, two = a_run(id="one", scope="b1"), a_run(id="two", scope="b2")
    scopes = {"b1": [one], "b2": [two]}
    records = [
        a_record(key=1, at=None, bead="b1"),
        a_record(key=2, at=NOW + 9, bead="b1"),
        a_record(key=3, at=NOW + 5, bead="unknown"),
        a_record(key=4, at=NOW + 7, bead="b2"),
    ]
    for order in (records, records[::-1]):
        implied = attribution.implied_attachment("s", order, scopes)
        assert implied is not None
        assert (implied.run, implied.counts_from, implied.until) == ("two", 0, None)
    assert attribution.implied_attachment("s", records[2:3], scopes) is None


def test_bead_names_the_run_of_its_time() -> None:
    older, newer = a_run(id="older", scope="b", started_at=NOW), a_run(id="newer", scope="b", started_at=NOW + 100)
    scopes = {"b": [older, newer]}
    found = [attribution.run_of_scope("b", at, scopes) for at in (NOW - 1, NOW, NOW + 99, NOW + 100, None)]
    assert [run.id for run in found if run is not None] == ["older", "older", "older", "newer", "newer"]
    assert attribution.run_of_scope("", NOW, scopes) is None


@given(st.lists(st.tuples(st.sampled_from(["", "b"]), st.integers(0, 50), st.sampled_from(["planned", "x"]))))
def test_every_record_is_in_exactly_one_cell(rows: list[tuple[str, int, str]]) -> None:
    run = a_run(scope="b")
    records = [a_record(key=i, bead=bead, input=n, phase=phase) for i, (bead, n, phase) in enumerate(rows)]
    cells = attribution.tally(records, {"b": [run]}, (), {run.id: Timeline(run)})
    assert sum(cells.values(), Counts()).billing == sum(n for _, n, _ in rows)
    assert sum(counts.records for counts in cells.values()) == len(rows)
    assert {cell.phase for cell in cells if cell.run} <= {"planned", "brainstorm"}


def test_followed_for_48_hours() -> None:
    ended = a_run(status="done", ended_at=NOW)
    hours = 3600 * 1_000_000
    assert runs.is_followed(a_run(), NOW + 1000 * hours)
    assert runs.is_followed(ended, NOW + 48 * hours - 1)
    assert not runs.is_followed(ended, NOW + 48 * hours)


def test_starting_the_same_run_again() -> None:
    """The fields that are given must agree with the original or with the current ones."""
    was = a_run(token_budget=100)
    now_is = msgspec.structs.replace(was, token_budget=200)
    for agreed in (None, 100, 200):
        runs.require_same(RunStart(project_dir="/elsewhere", token_budget=agreed), now_is, was, DEFAULTS)
    for differing in ({"token_budget": 300}, {"token_budget": "none"}, {"goal": "x"}, {"project_given": True}):
        asked = msgspec.structs.replace(RunStart(project_dir="/elsewhere"), **differing)
        with pytest.raises(ConflictError):
            runs.require_same(asked, now_is, was, DEFAULTS)
    with pytest.raises(ConflictError):
        runs.require_same(RunStart(project_dir="/p"), msgspec.structs.replace(was, status="done"), was, DEFAULTS)


def test_run_changes_as_asked() -> None:
    run = a_run(token_budget=100)
    assert runs.changed_run(run, RunSet(token_budget="none")).token_budget is None
    assert runs.changed_run(run, RunSet(warn_pct=50, enforcement="hard")) == msgspec.structs.replace(
        run, warn_pct=50, enforcement="hard"
    )
    for bad in (RunSet(token_budget=0), RunSet(warn_pct=100), RunSet(enforcement="x")):
        with pytest.raises(BadInputError):
            runs.changed_run(run, bad)
    with pytest.raises(ConflictError):
        runs.changed_run(msgspec.structs.replace(run, status="done"), RunSet(warn_pct=50))
