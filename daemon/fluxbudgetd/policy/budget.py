"""A run's balance: what is spent, what remains, and the state of its budget."""

from fluxbudgetd.model import Balance, Run
from fluxbudgetd.policy.limits import limit
from fluxbudgetd.wire.messages import MAX_TOKENS, BudgetState


def balance(run: Run, measured: int, provisional: int = 0, reserved: int = 0) -> Balance:
    """Return a run's balance.

    spent = measured + provisional; remaining = max(0, limit - spent - reserved), where the limit is the budget or what
    an allowance has raised it to. The state depends on what is spent, not on what is reserved. All in tokens of the
    run's cost basis, each capped at `MAX_TOKENS`.
    """
    measured, provisional = min(measured, MAX_TOKENS), min(provisional, MAX_TOKENS)
    spent = min(measured + provisional, MAX_TOKENS)
    budget, most = run.token_budget, limit(run)
    return Balance(
        budget=budget,
        measured=measured,
        provisional=provisional,
        reserved=reserved,
        spent=spent,
        remaining=None if most is None else max(0, most - spent - reserved),
        pct=None if budget is None else percent(spent, budget),
        state=state(run, spent),
    )


def percent(spent: int, budget: int) -> float:
    """Return spent / budget · 100 with one decimal, rounded down: 80.0 is not shown before 80 % is spent."""
    return (spent * 1000 // budget) / 10


def state(run: Run, spent: int) -> BudgetState:
    """Return `unlimited`, `ok`, `warning` (at least warn_pct % spent) or `exceeded` (at least 100 % spent)."""
    if run.token_budget is None:
        return "unlimited"
    if spent >= run.token_budget:
        return "exceeded"
    if spent * 100 >= run.token_budget * run.warn_pct:
        return "warning"
    return "ok"
