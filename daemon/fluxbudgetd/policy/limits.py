"""Limits: what a run may spend, and when a hard limit stops it.

Soft enforcement warns, and refuses only `check` and `advance`. Hard enforcement stops: prompts, turns, launches of
sub-agents and steps to another phase are refused while `is_stopped`. An allowance, of tokens or of time, lets a stopped
run go on. Reservations do not stop a run; they only leave less room for launches.
"""

from fluxbudgetd.model import Balance, Run


def limit(run: Run) -> int | None:
    """Return how many tokens a run may spend: its budget, or more if it was allowed more; None without a budget."""
    return None if run.token_budget is None else max(run.token_budget, run.allowed_to or 0)


def is_stopped(run: Run, balance: Balance, now: int) -> bool:
    """Return True if a hard limit stops the run."""
    return run.status == "active" and run.enforcement == "hard" and is_exhausted(run, balance, now)


def is_exhausted(run: Run, balance: Balance, now: int) -> bool:
    """Return True if the run has spent all that it may, allowances included."""
    most = limit(run)
    return most is not None and balance.spent >= most and not has_time(run, now)


def has_time(run: Run, now: int) -> bool:
    """Return True if the run is allowed to go on for some time yet, whatever it spends."""
    return run.allowed_until is not None and now < run.allowed_until


def refusal(run: Run, balance: Balance, now: int) -> str | None:
    """Return the line `budget_exceeded|PHASE|SPENT/BUDGET billing tokens`, or None if the run may go on.

    Level-triggered: it depends only on the balance and the time, so every check of an exhausted run is refused.
    """
    if not is_exhausted(run, balance, now):
        return None
    return f"budget_exceeded|{run.phase}|{balance.spent}/{balance.budget} {run.cost_basis} tokens"
