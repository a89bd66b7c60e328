"""Warnings: each percentage is told once per budget, of what is passed now."""

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
    """A run whose spend and settings change; every step returns what is told: (kind, percentage)."""

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
        return self._told()

    def change(self, **fields: object) -> list[tuple[str, object]]:
        self.run = msgspec.structs.replace(self.run, **fields)
        if "token_budget" in fields:
            self.fired = thresholds.still_fired(self.fired, self.balance)
        return self._told()

    def _told(self) -> list[tuple[str, object]]:
        new = thresholds.passed(thresholds.thresholds_of(self.configured, self.run.warn_pct), self.balance) - self.fired
        self.fired |= new
        told = thresholds.events(self.run, self.balance, new)
        return [(kind.removeprefix("budget."), data["threshold"]) for kind, data in told]


HALF = [("threshold", 50)]
WARNING = [("threshold", 80), ("warning", 80)]
ALL = [("threshold", 95), ("threshold", 100), ("exceeded", 100)]


def test_once_each_at_its_percentage() -> None:
    run = Watched(1000)
    steps = {499: [], 500: HALF, 799: [], 800: WARNING, 949: [], 950: ALL[:1], 999: [], 1000: ALL[1:], 9000: []}
    assert {spent: run.spend(spent) for spent in steps} == steps
    assert Watched(1000).spend(5000) == HALF + WARNING + ALL


def test_falling_and_rising_again_tells_nothing() -> None:
    run = Watched(1000)
    assert run.spend(850) == HALF + WARNING
    assert [run.spend(spent) for spent in (0, 850, 10, 949, 949)] == [[]] * 5
    assert run.spend(950) == ALL[:1]


def test_a_higher_budget_arms_what_is_not_passed_any_more() -> None:
    run = Watched(1000)
    run.spend(1000)
    assert run.change(token_budget=2000) == []
    assert run.spend(1599) == []
    assert run.spend(1600) == WARNING
    assert run.spend(2000) == ALL


def test_a_lower_budget_tells_at_once() -> None:
    run = Watched(1000)
    assert run.spend(500) == HALF
    assert run.change(token_budget=600) == WARNING
    assert run.change(token_budget=500) == ALL
    assert run.change(token_budget=1) == []


def test_nothing_without_a_budget() -> None:
    run = Watched(None)
    assert run.spend(10**18) == []
    assert run.change(token_budget=10**18) == HALF + WARNING + ALL
    assert run.change(token_budget=None) == []
    every = thresholds.thresholds_of(CONFIGURED, 80)
    assert thresholds.passed(every, budget.balance(a_run(token_budget=None), 5)) == frozenset()


def test_another_warning_percentage() -> None:
    run = Watched(1000)
    run.spend(850)
    assert run.change(warn_pct=90) == []
    assert run.spend(900) == [("threshold", 90), ("warning", 90)]
    assert run.change(warn_pct=60) == [("threshold", 60), ("warning", 60)]
    assert run.spend(900) == []


@pytest.mark.parametrize("warn_pct", [50, 95])
def test_a_warning_is_told_although_its_percentage_was_told_as_a_threshold(warn_pct: int) -> None:
    """A run that comes into the state `warning` is warned of, once, whatever else stands at that percentage."""
    run = Watched(1000, warn_pct=99)
    run.spend(960)
    assert ("warning", warn_pct) in run.change(warn_pct=warn_pct)
    assert run.spend(970) == []


@pytest.mark.parametrize(
    ("configured", "warn_pct", "told"),
    [
        ((), 80, [("warning", 80), ("exceeded", 100)]),
        ((50,), 50, [("threshold", 50), ("warning", 50), ("exceeded", 100)]),
        ((50, "warn_pct"), 50, [("threshold", 50), ("warning", 50), ("exceeded", 100)]),
        (("warn_pct",), 7, [("threshold", 7), ("warning", 7), ("exceeded", 100)]),
        ((100, 150, 201), 99, [("warning", 99), ("threshold", 100), ("exceeded", 100), ("threshold", 150)]),
    ],
)
def test_kinds(configured: tuple[Threshold, ...], warn_pct: int, told: list[tuple[str, int]]) -> None:
    """`threshold` where one is configured; `warning` and `exceeded` always, at warn_pct and at 100."""
    assert Watched(1000, warn_pct, configured).spend(2009) == told


def test_what_an_event_says() -> None:
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
def test_against_a_slow_obvious_model(
    configured: tuple[Threshold, ...], tokens: int, steps: list[tuple[str, int | None]]
) -> None:
    """Each percentage at most once for as long as it stays passed or the budget stays; none is ever missed."""
    run = Watched(tokens, configured=configured)
    limit: int | None = tokens
    spent, warn = 0, 80
    told: set[tuple[str, int]] = set()
    for what, value in steps:
        if what == "spend":
            spent = value or 0
            found = run.spend(spent)
        elif what == "budget":
            limit = value
            told = {one for one in told if limit is not None and Fraction(spent, limit) >= Fraction(one[1], 100)}
            found = run.change(token_budget=limit)
        else:
            warn = value or 1
            found = run.change(warn_pct=warn)
        looked_at = [("threshold", warn if one == "warn_pct" else one) for one in configured]
        looked_at += [("warning", warn), ("exceeded", 100)]
        expected = {
            one for one in looked_at if limit is not None and Fraction(spent, limit) >= Fraction(one[1], 100)
        } - told
        told |= expected
        assert set(found) == expected
        assert len(found) == len(expected)
        assert [pct for _, pct in found] == sorted(pct for _, pct in expected)
