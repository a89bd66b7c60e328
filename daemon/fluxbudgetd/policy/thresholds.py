"""Warnings: edge-triggered, once per run and budget.

A threshold is passed when at least its percentage of the budget is spent. It fires when it is passed and has not fired
for the present budget. Another budget forgets those that are not passed any more, so that they fire again; those that a
lower budget leaves behind fire at once. Numbers that fall and rise again under one budget fire nothing a second time.

Each configured percentage is a `budget.threshold`; the run's warning percentage is a `budget.warning` too, and 100 a
`budget.exceeded`, whether configured or not. So that nobody is told the same twice, a channel takes one event for each
percentage: the warning and the exceeded budget by those kinds, any other percentage by its `budget.threshold`.
"""

from collections.abc import Collection, Sequence

from fluxbudgetd.config.schema import ChannelThresholds, Threshold
from fluxbudgetd.model import Balance, BudgetThreshold, Event, EventData, EventKind, Run
from fluxbudgetd.policy.budget import percent

ALL = 100
_ORDER: tuple[EventKind, ...] = ("budget.threshold", "budget.warning", "budget.exceeded")


def marks(configured: Sequence[Threshold], warn_pct: int) -> frozenset[BudgetThreshold]:
    """Return everything that can be told of a run."""
    percentages = {warn_pct if one == "warn_pct" else one for one in configured}
    found = {BudgetThreshold("budget.threshold", pct) for pct in percentages}
    return frozenset(found | {BudgetThreshold("budget.warning", warn_pct), BudgetThreshold("budget.exceeded", ALL)})


def passed(of: Collection[BudgetThreshold], balance: Balance) -> frozenset[BudgetThreshold]:
    """Return the marks that are passed; none without a budget."""
    if balance.budget is None:
        return frozenset()
    spent, budget = balance.spent * 100, balance.budget
    return frozenset(mark for mark in of if spent >= mark.pct * budget)


def rearmed(fired: Collection[BudgetThreshold], balance: Balance) -> frozenset[BudgetThreshold]:
    """Return what of the fired marks stays fired under another budget."""
    return passed(fired, balance)


def events(run: Run, balance: Balance, new: Collection[BudgetThreshold]) -> list[tuple[EventKind, EventData]]:
    """Return what is to be told of newly passed marks, lowest first."""
    return [
        (
            mark.kind,
            {
                "threshold": mark.pct,
                "spent": balance.spent,
                "budget": balance.budget,
                "pct": percent(balance.spent, balance.budget or 1),
                "remaining": balance.remaining,
                "provisional": balance.provisional,
                "phase": run.phase,
                "warn_pct": run.warn_pct,
            },
        )
        for mark in sorted(new, key=lambda mark: (mark.pct, _ORDER.index(mark.kind)))
    ]


def mark(event: Event) -> BudgetThreshold | None:
    """Return the mark that an event tells of; None for other events."""
    pct = event.data.get("threshold")
    return BudgetThreshold(event.kind, pct) if event.kind in _ORDER and isinstance(pct, int) else None


def is_told(event: Event, wanted: ChannelThresholds, configured: Sequence[Threshold]) -> bool:
    """Tell whether a channel that wants these percentages (`all`: the configured ones) tells an event."""
    found = mark(event)
    if found is None:
        return False
    warn_pct = event.data.get("warn_pct")
    if found.kind == "budget.threshold" and found.pct in (warn_pct, ALL):
        return False  # told as the warning, or as the exceeded budget
    percentages = configured if wanted == "all" else wanted
    return found.pct in percentages or (found.kind == "budget.warning" and "warn_pct" in percentages)
