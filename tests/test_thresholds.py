"""The rules for thresholds: each percentage is reported once per budget, if it is passed now."""

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config.schema import Threshold, Warnings
from fluxbudgetd.model import Balance, BudgetThreshold, Run
from fluxbudgetd.policy import budget, thresholds
from harness.values import a_run

CONFIGURED = Warnings().thresholds


class Watched:
    """A run whose spend and settings change; every step returns what is reported: (kind, percentage)."""

    def __init__(self, tokens: int | None, warn_pct: int = 80, configured: tuple[Threshold, ...] = CONFIGURED) -> None:
        self.run: Run = a_run(token_budget=tokens, warn_pct=warn_pct)
        self.configured = configured
        self.spent = 0
        self.fired: frozenset[BudgetThreshold] = frozenset()

    @property
    def balance(self) -> Balance:
        return budget.balance(self.run, self.spent)

    def spend(self, spent: int) -> list[tuple[str, object]]:
        self.spent = spent
        return self._reported()

    def change(self, **fields: object) -> list[tuple[str, object]]:
        self.run = msgspec.structs.replace(self.run, **fields)
        if "token_budget" in fields:
            self.fired = thresholds.still_fired(self.fired, self.balance)
        return self._reported()

    def _reported(self) -> list[tuple[str, object]]:
        new = thresholds.passed(thresholds.thresholds_of(self.configured, self.run.warn_pct), self.balance) - self.fired
        self.fired |= new
        reported = thresholds.events(self.run, self.balance, new)
        return [(kind.removeprefix("budget."), data["threshold"]) for kind, data in reported]


HALF = [("threshold", 50)]
WARNING = [("threshold", 80), ("warning", 80)]
ALL = [("threshold", 95), ("threshold", 100), ("exceeded", 100)]


def test_each_threshold_is_reported_once() -> None:
    run = Watched(1000)
    steps = {499: [], 500: HALF, 799: [], 800: WARNING, 949: [], 950: ALL[:1], 999: [], 1000: ALL[1:], 9000: []}
    assert {spent: run.spend(spent) for spent in steps} == steps
    assert Watched(1000).spend(5000) == HALF + WARNING + ALL


def test_spend_that_falls_and_rises_again_reports_nothing() -> None:
    run = Watched(1000)
    assert run.spend(850) == HALF + WARNING
    assert [run.spend(spent) for spent in (0, 850, 10, 949, 949)] == [[]] * 5
    assert run.spend(950) == ALL[:1]


def test_higher_budget_rearms_thresholds_no_longer_passed() -> None:
    run = Watched(1000)
    run.spend(1000)
    assert run.change(token_budget=2000) == []
    assert run.spend(1599) == []
    assert run.spend(1600) == WARNING
    assert run.spend(2000) == ALL


def test_lower_budget_reports_at_once() -> None:
    run = Watched(1000)
    assert run.spend(500) == HALF
    assert run.change(token_budget=600) == WARNING
    assert run.change(token_budget=500) == ALL
    assert run.change(token_budget=1) == []


def test_run_without_a_budget_reports_nothing() -> None:
    run = Watched(None)
    assert run.spend(10**18) == []
    assert run.change(token_budget=10**18) == HALF + WARNING + ALL
    assert run.change(token_budget=None) == []
    every = thresholds.thresholds_of(CONFIGURED, 80)
    assert thresholds.passed(every, budget.balance(a_run(token_budget=None), 5)) == frozenset()


def test_changed_warning_percentage() -> None:
    run = Watched(1000)
    run.spend(850)
    assert run.change(warn_pct=90) == []
    assert run.spend(900) == [("threshold", 90), ("warning", 90)]
    assert run.change(warn_pct=60) == [("threshold", 60), ("warning", 60)]
    assert run.spend(900) == []


@pytest.mark.parametrize("warn_pct", [50, 95])
def test_warning_is_reported_at_the_percentage_of_a_threshold(warn_pct: int) -> None:
    """Each run that reaches the state `warning` is reported once, even if a threshold was reported there."""
    run = Watched(1000, warn_pct=99)
    run.spend(960)
    assert ("warning", warn_pct) in run.change(warn_pct=warn_pct)
    assert run.spend(970) == []


@pytest.mark.parametrize(
    ("configured", "warn_pct", "reported"),
    [
        ((), 80, [("warning", 80), ("exceeded", 100)]),
        ((50,), 50, [("threshold", 50), ("warning", 50), ("exceeded", 100)]),
        ((50, "warn_pct"), 50, [("threshold", 50), ("warning", 50), ("exceeded", 100)]),
        (("warn_pct",), 7, [("threshold", 7), ("warning", 7), ("exceeded", 100)]),
        ((100, 150, 201), 99, [("warning", 99), ("threshold", 100), ("exceeded", 100), ("threshold", 150)]),
    ],
)
def test_kinds_of_events(configured: tuple[Threshold, ...], warn_pct: int, reported: list[tuple[str, int]]) -> None:
    """`threshold` comes as configured, `warning` always at warn_pct, and `exceeded` always at 100."""
    assert Watched(1000, warn_pct, configured).spend(2009) == reported


def test_data_of_an_event() -> None:
    run = a_run(token_budget=1000, phase="executing")
    balance = budget.balance(run, 700, provisional=107, reserved=50)
    (kind, data), *_ = thresholds.events(run, balance, {BudgetThreshold("budget.warning", 80)})
    assert kind == "budget.warning"
    assert data == {
        "threshold": 80, "spent": 807, "budget": 1000, "pct": 80.7, "remaining": 143, "provisional": 107,
        "phase": "executing", "warn_pct": 80,
    }  # fmt: skip


steps = st.lists(
    st.tuples(st.just("spend"), st.integers(0, 250))
    | st.tuples(st.just("budget"), st.none() | st.integers(1, 200))
    | st.tuples(st.just("warn"), st.integers(1, 99)),
    max_size=25,
)
some_thresholds = st.lists(st.integers(1, 150) | st.just("warn_pct"), unique=True, max_size=4).map(tuple)


@given(some_thresholds, st.integers(1, 100), steps)
def test_thresholds_equal_a_slow_obvious_model(
    configured: tuple[Threshold, ...], tokens: int, steps: list[tuple[str, int | None]]
) -> None:
    """Each percentage is reported once while it stays passed or the budget stays the same; none is missed."""
    run = Watched(tokens, configured=configured)
    limit: int | None = tokens
    spent, warn = 0, 80
    reported: set[tuple[str, int]] = set()
    for what, value in steps:
        if what == "spend":
            spent = value or 0
            found = run.spend(spent)
        elif what == "budget":
            limit = value
            reported = {
                one for one in reported if limit is not None and Fraction(spent, limit) >= Fraction(one[1], 100)
            }
            found = run.change(token_budget=limit)
        else:
            warn = value or 1
            found = run.change(warn_pct=warn)
        looked_at = [("threshold", warn if one == "warn_pct" else one) for one in configured]
        looked_at += [("warning", warn), ("exceeded", 100)]
        expected = {
            one for one in looked_at if limit is not None and Fraction(spent, limit) >= Fraction(one[1], 100)
        } - reported
        reported |= expected
        assert set(found) == expected
        assert len(found) == len(expected)
        assert [pct for _, pct in found] == sorted(pct for _, pct in expected)
