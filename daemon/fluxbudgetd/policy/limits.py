"""Limits: what a run may spend, and when a hard limit stops it.

Soft enforcement warns, and refuses only `check` and `advance`. Hard enforcement stops: prompts, turns, launches of
sub-agents and steps to another phase are refused while `is_stopped`. An allowance, of tokens or of time, lets a stopped
run go on. Reservations do not stop a run; they only leave less room for launches.
"""

from typing import NamedTuple

import msgspec

from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import Balance, Run
from fluxbudgetd.wire.messages import MAX_TOKENS

_DEFAULT_SHARE = 10  # a tenth of the budget
_MOST_MINUTES = 7 * 24 * 60
_MINUTE = 60 * 1_000_000


class Excess(NamedTuple):
    """What a sub-agent beyond its ceiling was measured at, and its estimate, both in tokens of its run's cost basis."""

    measured: int
    estimate: int
    ceiling: float
    """How many times its estimate it may use."""


def limit(run: Run) -> int | None:
    """Return how many tokens a run may spend: its budget, or more if it was allowed more; None without a budget."""
    return None if run.token_budget is None else max(run.token_budget, run.allowed_to or 0)


def is_stopped(run: Run, balance: Balance, now: int) -> bool:
    """Return True if a hard limit stops the run."""
    return run.status == "active" and run.enforcement == "hard" and is_exhausted(run, balance, now)


def is_exhausted(run: Run, balance: Balance, now: int) -> bool:
    """Return True if the run has spent all that it may, including allowances."""
    return is_spent(run, balance) and not has_time(run, now)


def is_spent(run: Run, balance: Balance) -> bool:
    """Return True if the run has spent all tokens that it may, including those that were allowed."""
    most = limit(run)
    return most is not None and balance.spent >= most


def has_time(run: Run, now: int) -> bool:
    """Return True if the run may go on for some more time, however much it spends."""
    return run.allowed_until is not None and now < run.allowed_until


def allowed(run: Run, spent: int, now: int, tokens: int | None, minutes: int | None) -> Run:
    """Return the run with an allowance of tokens or minutes; of 10 % of its budget if both are None.

    Allowed tokens come on top of what is spent, and of what the run may spend already; allowed minutes on top of those
    that are left. A run that nothing stops is returned as it is. Raises `BadInputError`, or `ConflictError` on an ended
    run.
    """
    if run.status != "active":
        raise ConflictError(f"run {run.id} is {run.status}", "only an active run can go on")
    if tokens is not None and not 0 < tokens <= MAX_TOKENS:
        raise BadInputError(f"{tokens} tokens cannot be allowed", "a whole number above 0")
    if minutes is not None and not 0 < minutes <= _MOST_MINUTES:
        raise BadInputError(f"{minutes} minutes cannot be allowed", f"1 to {_MOST_MINUTES}")
    most = limit(run)
    if most is None or run.token_budget is None or run.enforcement == "soft":
        return run
    if minutes is not None:
        return msgspec.structs.replace(run, allowed_until=max(now, run.allowed_until or 0) + minutes * _MINUTE)
    more = max(1, run.token_budget // _DEFAULT_SHARE) if tokens is None else tokens
    return msgspec.structs.replace(run, allowed_to=min(max(spent, most) + more, MAX_TOKENS))


def refusal(run: Run, balance: Balance, now: int) -> str | None:
    """Return the line `budget_exceeded|PHASE|SPENT/BUDGET billing tokens`, or None if the run may go on.

    Level-triggered: it depends only on the balance and the time, so every check of an exhausted run is refused.
    """
    if not is_exhausted(run, balance, now):
        return None
    return f"budget_exceeded|{run.phase}|{balance.spent}/{balance.budget} {run.cost_basis} tokens"


def excess(run: Run, measured: int, estimate: int, ceiling: float) -> Excess | None:
    """Return a sub-agent's excess over its ceiling; None if it is within it, or the run has no budget."""
    if run.token_budget is None or measured <= estimate * ceiling:
        return None
    return Excess(measured, estimate, ceiling)
