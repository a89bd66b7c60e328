"""Thresholds: each fires once per run and budget.

A threshold is passed when at least its percentage of the budget is spent. It fires when it is passed and has not fired
for the current budget. Changing the budget re-arms thresholds that are no longer passed; those that a lower budget
passes fire at once. A spend that falls and rises again under one budget fires nothing a second time.

Each configured percentage is a `budget.threshold`. The run's warning percentage is also a `budget.warning`, and 100 a
`budget.exceeded`, whether configured or not. A channel delivers one event for each percentage: `budget.warning` or
`budget.exceeded` if there is one, otherwise `budget.threshold`.
"""

from collections.abc import Collection, Sequence

from fluxbudgetd.config.schema import ChannelThresholds, Threshold
from fluxbudgetd.model import Balance, BudgetThreshold, Event, EventData, EventKind, Run
from fluxbudgetd.policy.budget import percent

ALL = 100
_ORDER: tuple[EventKind, ...] = ("budget.threshold", "budget.warning", "budget.exceeded")


def thresholds_of(configured: Sequence[Threshold], warn_pct: int) -> frozenset[BudgetThreshold]:
    """Return all thresholds of a run with this warning percentage."""
    percentages = {warn_pct if pct == "warn_pct" else pct for pct in configured}
    found = {BudgetThreshold("budget.threshold", pct) for pct in percentages}
    return frozenset(found | {BudgetThreshold("budget.warning", warn_pct), BudgetThreshold("budget.exceeded", ALL)})


def passed(thresholds: Collection[BudgetThreshold], balance: Balance) -> frozenset[BudgetThreshold]:
    """Return the thresholds that are passed; none without a budget."""
    if balance.budget is None:
        return frozenset()
    spent, budget = balance.spent * 100, balance.budget
    return frozenset(threshold for threshold in thresholds if spent >= threshold.pct * budget)


def still_fired(fired: Collection[BudgetThreshold], balance: Balance) -> frozenset[BudgetThreshold]:
    """Return the thresholds that stay fired under another budget."""
    return passed(fired, balance)


def events(run: Run, balance: Balance, new: Collection[BudgetThreshold]) -> list[tuple[EventKind, EventData]]:
    """Return the events that report newly passed thresholds, lowest first."""
    return [
        (
            threshold.kind,
            {
                "threshold": threshold.pct,
                "spent": balance.spent,
                "budget": balance.budget,
                "pct": percent(balance.spent, balance.budget or 1),
                "remaining": balance.remaining,
                "provisional": balance.provisional,
                "phase": run.phase,
                "warn_pct": run.warn_pct,
            },
        )
        for threshold in sorted(new, key=lambda threshold: (threshold.pct, _ORDER.index(threshold.kind)))
    ]


def threshold_of(event: Event) -> BudgetThreshold | None:
    """Return the threshold that an event reports; None for other events."""
    pct = event.data.get("threshold")
    return BudgetThreshold(event.kind, pct) if event.kind in _ORDER and isinstance(pct, int) else None


def is_wanted(event: Event, wanted: ChannelThresholds, configured: Sequence[Threshold]) -> bool:
    """Return True if a channel with these percentages (`all`: the configured ones) delivers an event."""
    found = threshold_of(event)
    if found is None:
        return False
    warn_pct = event.data.get("warn_pct")
    if found.kind == "budget.threshold" and found.pct in (warn_pct, ALL):
        return False  # reported by its `budget.warning` or `budget.exceeded`
    percentages = configured if wanted == "all" else wanted
    return found.pct in percentages or (found.kind == "budget.warning" and "warn_pct" in percentages)
