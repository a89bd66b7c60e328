"""Events."""

from typing import Literal, NamedTuple

import msgspec

EventKind = Literal[
    "run.started",
    "run.changed",
    "run.finished",
    "run.loosened",
    "phase.advanced",
    "phase.blocked",
    "budget.threshold",
    "budget.warning",
    "budget.exceeded",
    "budget.overridden",
    "budget.allowed",
    "launch.denied",
    "turn.stopped",
    "turn.failed",
    "usage.corrected",
    "source.degraded",
    "source.recovered",
]
EventData = dict[str, str | int | float | None]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `seq` strictly increases. `run` is None for events about a source."""

    seq: int
    at: int
    run: str | None
    kind: EventKind
    data: EventData


class BudgetThreshold(NamedTuple):
    """A percentage of a run's budget, and the kind of event that reports that it has been spent."""

    kind: EventKind
    pct: int
