"""Events."""

from typing import Literal, NamedTuple

import msgspec

from fluxbudgetd.wire.messages import By

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
    """Something that happened. `seq` strictly increases. `run` is None for events about a source.

    `by` is None if no request caused it. `data` of a refusal has a `count`, which grows while equal refusals follow.
    """

    seq: int
    at: int
    run: str | None
    kind: EventKind
    data: EventData
    by: By | None = None


class BudgetThreshold(NamedTuple):
    """A percentage of a run's budget, and the kind of event that reports that it has been spent."""

    kind: EventKind
    pct: int
