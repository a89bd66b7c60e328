"""Warnings in words, for a person and for a session."""

from fluxbudgetd.model import Balance, Event, Run
from fluxbudgetd.policy.budget import percent
from fluxbudgetd.policy.limits import Excess
from fluxbudgetd.wire.short import grouped

_LONGEST_GOAL = 100


def title(event: Event) -> str:
    """Return a warning in a few words: `80 % of the budget spent`."""
    if event.kind == "budget.exceeded":
        return "budget exceeded"
    return f"{_number(event, 'threshold')} % of the budget spent"


def where(run: Run, event: Event) -> str:
    """Return a run's spend at the time of an event: `208 500 of 250 000 billing tokens (83 %), 41 500 left`."""
    return _share(run, _number(event, "spent"), _number(event, "budget"), None)


def name(run: Run) -> str:
    """Return a run's id, with the beginning of its goal if it has one."""
    return f"{run.id}: {run.goal[:_LONGEST_GOAL]}" if run.goal else run.id


def warning(run: Run, event: Event) -> str:
    """Return a warning as one line."""
    phase = event.data.get("phase") or run.phase
    return f"fluxbudget: {title(event)}: run {run.id}, phase {phase}: {where(run, event)}"


def reminder(run: Run, balance: Balance, event: Event) -> str:
    """Return a warning for a session, which may be late: what was reported, and the run's balance now."""
    return f"fluxbudget: {title(event)}: run {run.id}, phase {run.phase}: {_amounts(run, balance)}"


def standing(run: Run, balance: Balance, *, stale: bool) -> str:
    """Return a run's balance as one line for a session that starts."""
    exceeded = f"; budget exceeded, enforcement is {run.enforcement}" if balance.state == "exceeded" else ""
    known = " (last known numbers)" if stale else ""
    return f"fluxbudget: run {run.id}, phase {run.phase}: spent {_amounts(run, balance)}{exceeded}{known}"


def excess(run: Run, excess: Excess) -> str:
    """Return how far a sub-agent is beyond its ceiling, as what follows "it has" or "you have"."""
    used = f"{grouped(excess.measured)} {run.cost_basis} tokens"
    return f"used {used}, more than {excess.ceiling:g} times the estimate of {grouped(excess.estimate)}"


def _amounts(run: Run, balance: Balance) -> str:
    amounts = f"{grouped(balance.spent)} {run.cost_basis} tokens"
    if balance.budget is not None:
        amounts = _share(run, balance.spent, balance.budget, balance.remaining)
    return amounts + (f" ({grouped(balance.reserved)} reserved)" if balance.reserved else "")


def _share(run: Run, spent: int, budget: int, remaining: int | None) -> str:
    pct = int(percent(spent, budget)) if budget else 100
    return f"{grouped(spent)} of {grouped(budget)} {run.cost_basis} tokens ({pct} %), {_left(budget, spent, remaining)}"


def _left(budget: int, spent: int, remaining: int | None) -> str:
    if spent > budget:
        return f"{grouped(spent - budget)} over"
    return f"{grouped(budget - spent if remaining is None else remaining)} left"


def _number(event: Event, name: str) -> int:
    value = event.data.get(name)
    return value if isinstance(value, int) else 0
