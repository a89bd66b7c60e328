"""The rules of limits and of admission: what a run may still spend, when a hard limit stops it, which launches fit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import Run
from fluxbudgetd.policy import budget, limits, runs
from fluxbudgetd.policy.admission import Admission, admission, asks_person
from fluxbudgetd.policy.limits import Excess
from fluxbudgetd.wire.messages import MAX_TOKENS, RunSet
from harness.values import NOW, a_run, an_estimate


def hard(**fields: Any) -> Run:
    return a_run(token_budget=100_000, enforcement="hard", **fields)


def is_stopped(run: Run, spent: int, *, reserved: int = 0, now: int = NOW) -> bool:
    return limits.is_stopped(run, budget.balance(run, spent, 0, reserved), now)


def test_hard_limit_stops_a_run_that_has_spent_its_budget() -> None:
    assert not is_stopped(hard(), 99_999)
    assert is_stopped(hard(), 100_000)
    assert not is_stopped(a_run(token_budget=100_000), 10**9)
    assert not is_stopped(a_run(token_budget=None, enforcement="hard"), 10**12)
    assert not is_stopped(hard(status="done"), 10**9)


def test_reservations_do_not_stop_a_run() -> None:
    assert not is_stopped(hard(), 99_999, reserved=10**9)


def test_allowed_tokens_let_a_run_go_on_and_add_to_what_is_left() -> None:
    run = hard(allowed_to=150_000)
    assert not is_stopped(run, 149_999)
    assert is_stopped(run, 150_000)
    found = budget.balance(run, 120_000, 0, 10_000)
    assert (found.budget, found.remaining, found.pct, found.state) == (100_000, 20_000, 120.0, "exceeded")
    assert not is_stopped(hard(allowed_to=1), 99_999)  # less than the budget changes nothing


def test_allowed_time_lets_a_run_go_on_until_it_is_over() -> None:
    run = hard(allowed_until=NOW + 1)
    assert not is_stopped(run, 10**9, now=NOW)
    assert is_stopped(run, 100_000, now=NOW + 1)
    assert not is_stopped(run, 99_999, now=NOW + 1)


@pytest.mark.parametrize("basis", ["billing", "total"])
def test_message_of_a_refusal(basis: str) -> None:
    run = a_run(token_budget=250_000, phase="executing", cost_basis=basis)
    refused = f"budget_exceeded|executing|260000/250000 {basis} tokens"
    assert limits.refusal(run, budget.balance(run, 260_000), NOW) == refused
    assert limits.refusal(run, budget.balance(run, 249_999), NOW) is None


def allowed(run: Run, spent: int = 120_000, tokens: int | None = None, minutes: int | None = None) -> Run:
    return limits.allowed(run, spent, NOW, tokens, minutes)


def test_tokens_are_allowed_on_top_of_what_is_spent_or_may_be() -> None:
    assert allowed(hard(), tokens=30_000).allowed_to == 150_000
    assert allowed(hard(), 40_000, tokens=30_000).allowed_to == 130_000
    again = allowed(allowed(hard(), tokens=30_000), tokens=30_000)
    assert again.allowed_to == 180_000
    assert allowed(hard(), tokens=MAX_TOKENS).allowed_to == MAX_TOKENS


def test_a_tenth_of_the_budget_is_allowed_by_default() -> None:
    assert allowed(hard()).allowed_to == 130_000
    assert allowed(a_run(token_budget=3, enforcement="hard"), 3).allowed_to == 4


def test_minutes_are_allowed_on_top_of_those_left() -> None:
    minute = 60 * 1_000_000
    once = allowed(hard(), minutes=5)
    assert (once.allowed_until, once.allowed_to) == (NOW + 5 * minute, None)
    assert allowed(once, minutes=10).allowed_until == NOW + 15 * minute
    assert allowed(hard(allowed_until=NOW - minute), minutes=1).allowed_until == NOW + minute


@pytest.mark.parametrize("amount", [{}, {"tokens": 5}, {"minutes": 5}])
def test_run_that_nothing_stops_needs_no_allowance(amount: dict[str, int]) -> None:
    for run in (a_run(token_budget=100), a_run(token_budget=None, enforcement="hard")):
        assert allowed(run, **amount) is run


@pytest.mark.parametrize(
    "amount", [{"tokens": 0}, {"tokens": -1}, {"tokens": 2**63}, {"minutes": 0}, {"minutes": 10_081}]
)
def test_amounts_that_cannot_be_allowed(amount: dict[str, int]) -> None:
    for run in (hard(), a_run(token_budget=100)):
        with pytest.raises(BadInputError):
            allowed(run, **amount)
    with pytest.raises(ConflictError):
        allowed(hard(status="done"))


@pytest.mark.parametrize(
    ("change", "keeps"),
    [
        ({"warn_pct": 50}, True),
        ({"token_budget": 100_000}, True),
        ({"enforcement": "hard"}, True),
        ({"token_budget": 100_001}, False),
        ({"token_budget": 99_999}, False),
        ({"token_budget": "none"}, False),
        ({"enforcement": "soft"}, False),
    ],
)
def test_changed_budget_ends_an_allowance(change: dict[str, Any], keeps: bool) -> None:
    run = runs.changed_run(hard(allowed_to=150_000, allowed_until=NOW), RunSet(run="r1", **change))
    assert (run.allowed_to, run.allowed_until) == ((150_000, NOW) if keeps else (None, None))


@pytest.mark.parametrize(
    ("measured", "ceiling", "is_beyond"),
    [(120_000, 3.0, False), (120_001, 3.0, True), (60_000, 1.5, False), (60_001, 1.5, True), (0, 3.0, False)],
)
def test_ceiling_of_a_sub_agent(measured: int, ceiling: float, is_beyond: bool) -> None:
    expected = Excess(measured, 40_000, ceiling) if is_beyond else None
    assert limits.excess(hard(), measured, 40_000, ceiling) == expected
    assert limits.excess(a_run(token_budget=None), measured, 40_000, ceiling) is None


def test_allowed_run_is_not_refused() -> None:
    for run in (hard(allowed_to=150_000), hard(allowed_until=NOW + 1)):
        assert limits.refusal(run, budget.balance(run, 120_000), NOW) is None


@pytest.mark.parametrize("mode", ["default", "plan", "acceptEdits", "dontAsk", "bypassPermissions", "auto", "", None])
def test_modes_in_which_a_person_is_asked(mode: str | None) -> None:
    assert asks_person(mode) == (mode in ("default", "plan", "acceptEdits", "auto"))


def admitted(
    estimate: int | None,
    spent: int,
    reserved: int = 0,
    agent: str = "fd-quality",
    *,
    has_person: bool = False,
    **fields: object,
) -> Admission:
    run = a_run(**{"token_budget": 100_000, **fields})
    expected = None if estimate is None else an_estimate(estimate)
    return admission(run, budget.balance(run, spent, 0, reserved), expected, agent, NOW, has_person=has_person)


def test_denial_says_how_many_samples_the_estimate_is_of() -> None:
    run = a_run(token_budget=100_000, enforcement="hard")
    expected = an_estimate(250_000, source="transcripts", sample_size=5)
    denied = admission(run, budget.balance(run, 0), expected, "fd-quality", NOW, has_person=False)
    assert "estimated at 250 000 billing tokens (mean of 5), 0 of 100 000" in denied.reason


@pytest.mark.parametrize(
    ("enforcement", "estimate", "spent", "reserved", "decision"),
    [
        ("hard", 40_000, 50_000, 10_000, "allow"),
        ("hard", 40_001, 50_000, 10_000, "deny"),
        ("hard", 1, 60_000, 40_000, "deny"),
        ("hard", None, 60_000, 39_999, "allow"),
        ("hard", None, 60_000, 40_000, "deny"),
        ("hard", 0, 60_000, 40_000, "allow"),
        ("hard", 0, 100_000, 0, "deny"),
        ("soft", 40_001, 50_000, 10_000, "allow"),
        ("soft", 0, 99_999, 50_000, "allow"),
    ],
)
def test_admission_by_enforcement(
    enforcement: str, estimate: int | None, spent: int, reserved: int, decision: str
) -> None:
    """Hard: a launch is denied unless it fits into the rest. Soft: everything is admitted until the budget is spent."""
    for has_person in (True, False):
        answer = admitted(estimate, spent, reserved, enforcement=enforcement, has_person=has_person)
        assert (answer.decision, answer.reserve) == (decision, decision == "allow")


def test_soft_budget_that_is_spent_asks_a_person_or_warns() -> None:
    """A launch that goes on with a warning is reserved now, one that the person may allow when it starts."""
    assert admitted(0, 100_000, has_person=True)[::3] == ("ask", False)
    assert admitted(0, 100_000, has_person=False)[::3] == ("warn", True)


def test_allowance_admits_what_fits_into_it() -> None:
    more: dict[str, Any] = {"enforcement": "hard", "allowed_to": 150_000}
    assert admitted(30_000, 120_000, **more).decision == "allow"
    assert admitted(30_001, 120_000, **more).decision == "deny"
    assert admitted(10**9, 120_000, enforcement="hard", allowed_until=NOW + 1).decision == "allow"


@pytest.mark.parametrize("enforcement", ["hard", "soft"])
def test_without_a_budget_everything_is_admitted(enforcement: str) -> None:
    answer = admitted(10**9, 10**12, token_budget=None, enforcement=enforcement)
    assert answer == Admission("allow", reserve=True)


@pytest.mark.parametrize("status", ["done", "cancelled"])
def test_ended_run_denies_nothing_and_reserves_nothing(status: str) -> None:
    assert admitted(10**9, 10**9, enforcement="hard", status=status) == Admission("allow")


def test_reasons_have_numbers_and_only_the_message_has_a_remedy() -> None:
    denied = admitted(40_000, 260_000, 30_000, token_budget=300_000, enforcement="hard")
    assert denied.reason == (
        "fd-quality does not fit into the budget of run r1: estimated at 40 000 billing tokens,"
        " 260 000 of 300 000 billing tokens spent, 30 000 reserved; finish without it"
    )
    assert denied.message == (
        "fluxbudget: fd-quality was not launched; to give run r1 more, use `fluxbudgetctl allow --run r1`"
        " or `fluxbudgetctl run set --run r1 --budget N` in your own terminal"
    )
    asked = admitted(5, 1_234_567, cost_basis="total")
    assert asked.reason == (
        "the budget of run r1 is exceeded, and fd-quality adds to it: estimated at 5 total tokens,"
        " 1 234 567 of 100 000 total tokens spent"
    )
    assert asked.message == f"fluxbudget: {asked.reason}; raise it with `fluxbudgetctl run set --run r1 --budget N`"
    stopped = admitted(5, 100_000, enforcement="hard")
    assert stopped.reason == (
        "the budget of run r1 is exhausted (100 000 of 100 000 billing tokens spent);"
        " do not launch sub-agents; finish with what you have, and say that the budget is exhausted"
    )
    assert stopped.message == (
        "fluxbudget: to let run r1 go on, use `fluxbudgetctl allow --run r1`"
        " or `fluxbudgetctl run set --run r1 --budget N` in your own terminal"
    )


@given(
    st.text(max_size=300) | st.just("\x1b[2J" * 99),
    st.none() | st.integers(0, 2**70),
    st.integers(0, 2**70),
    st.integers(0, 2**70),
    st.none() | st.integers(1, MAX_TOKENS),
    st.sampled_from(["hard", "soft"]),
    st.sampled_from(["active", "done"]),
    st.booleans(),
)
def test_reason_is_one_short_line(
    agent: str,
    estimate: int | None,
    spent: int,
    reserved: int,
    tokens: int | None,
    enforcement: str,
    status: str,
    has_person: bool,
) -> None:
    """This holds for any numbers and agent names. A run that is not active, or has no budget, denies nothing."""
    fields: dict[str, Any] = {"token_budget": tokens, "enforcement": enforcement, "status": status, "id": "r" * 128}
    answer = admitted(estimate, spent, reserved, agent, has_person=has_person, **fields)
    for text in (answer.reason, answer.message):
        assert len(text) <= 700
        assert text.isprintable()
        assert bool(text) == (answer.decision != "allow")
        assert not text or "r" * 128 in text
    assert "fluxbudgetctl" not in answer.reason
    assert answer.reserve == (answer.decision in ("allow", "warn") and status == "active")
    if tokens is None or status != "active":
        assert answer.decision == "allow"
    else:
        assert (answer.decision == "deny") <= (enforcement == "hard")
        is_exceeded = enforcement == "soft" and spent >= tokens
        assert (answer.decision == "ask") == (is_exceeded and has_person)
        assert (answer.decision == "warn") == (is_exceeded and not has_person)
