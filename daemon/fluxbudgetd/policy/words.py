"""Warnings in words, for a person and for a session."""

from fluxbudgetd.model import Balance, Event, Run
from fluxbudgetd.policy.budget import percent

_LONGEST_GOAL = 100


def title(event: Event) -> str:
    """Return a warning in a few words: `80 % of the budget spent`."""
    if event.kind == "budget.exceeded":
        return "the budget is used up"
    return f"{_number(event, 'threshold')} % of the budget spent"


def where(run: Run, event: Event) -> str:
    """Return where a run stood when it was warned of: `208 500 of 250 000 billing tokens (83 %), 41 500 left`."""
    spent, budget = _number(event, "spent"), _number(event, "budget")
    pct = int(percent(spent, budget)) if budget else 100
    return f"{grouped(spent)} of {grouped(budget)} {run.cost_basis} tokens ({pct} %), {_left(budget, spent)}"


def name(run: Run) -> str:
    """Return a run's id, with the beginning of its goal if it has one."""
    return f"{run.id}: {run.goal[:_LONGEST_GOAL]}" if run.goal else run.id


def warning(run: Run, event: Event) -> str:
    """Return a warning as one line."""
    phase = event.data.get("phase") or run.phase
    return f"fluxbudget: {title(event)}: run {run.id}, phase {phase}: {where(run, event)}"


def standing(run: Run, balance: Balance, *, stale: bool) -> str:
    """Return where a run stands, as one line for a session that begins."""
    spent = f"{grouped(balance.spent)} {run.cost_basis} tokens spent"
    if balance.budget is not None:
        pct = int(percent(balance.spent, balance.budget))
        spent = f"{grouped(balance.spent)} of {grouped(balance.budget)} {run.cost_basis} tokens spent ({pct} %)"
        spent += f", {_left(balance.budget, balance.spent)}"
    reserved = f", {grouped(balance.reserved)} reserved" if balance.reserved else ""
    exceeded = f"; the budget is used up, enforcement is {run.enforcement}" if balance.state == "exceeded" else ""
    return (
        f"fluxbudget: run {run.id}, phase {run.phase}: {spent}{reserved}{exceeded}"
        f"{' (last known numbers)' if stale else ''}"
    )


def grouped(tokens: int) -> str:
    """Return a number with its digits in groups of three."""
    return f"{tokens:,}".replace(",", " ")


def _left(budget: int, spent: int) -> str:
    return f"{grouped(spent - budget)} over" if spent > budget else f"{grouped(budget - spent)} left"


def _number(event: Event, name: str) -> int:
    value = event.data.get(name)
    return value if isinstance(value, int) else 0
