"""What a run, a phase, an agent or a session has used."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages.base import BudgetState

PhaseState = Literal["completed", "skipped", "current", "ahead"]
EstimateSource = Literal["calibration", "table"]


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """A run's budget and spend, in tokens of the run's cost basis."""

    budget: int | None
    """Null: unlimited."""
    spent: int
    """measured + provisional."""
    measured: int
    provisional: int
    reserved: int
    remaining: int | None
    """max(0, budget - spent - reserved); null if unlimited."""
    pct: float | None
    """spent / budget · 100; null if unlimited."""
    state: BudgetState
    stale: bool
    """True: a source cannot be read, and these are the last known numbers."""
    stale_why: str | None
    """Which source, and its state."""


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """A sum of usage records."""

    name: str
    records: int
    pending: int
    input: int
    output: int
    cache_read: int
    cache_creation: int
    billing: int
    """input + output."""
    total: int
    """billing + cache_read + cache_creation."""


class PhaseLine(Tally, frozen=True, kw_only=True):
    """A phase's measured usage, and what counts towards the budget."""

    state: PhaseState
    since: str | None
    until: str | None
    spent: int
    """Measured + provisional, in tokens of the run's cost basis."""
    provisional: int
    """The estimate, while a completed phase has no measured usage."""
    estimate: int
    """What the phase is expected to cost; for a completed phase, what was expected when the run left it."""
    estimate_source: EstimateSource
    sample_size: int
    """How many measured runs a calibrated estimate is based on."""
    override: str | None
    """Why the run left the phase with an exceeded budget."""


class StageLine(Tally, frozen=True, kw_only=True):
    """A macro-stage's measured usage, and its share of the budget."""

    spent: int
    """Measured + provisional, in tokens of the run's cost basis."""
    provisional: int
    allocated: int | None
    """Its share of the budget; null for a run without one, and for phases that belong to no stage."""


class Earlier(msgspec.Struct, frozen=True, kw_only=True):
    """Usage from before the time at which a session's first attachment begins to count; it belongs to no run."""

    billing: int = 0
    total: int = 0


class SessionSources(msgspec.Struct, frozen=True, kw_only=True):
    """A session's usage according to each source, in all its runs. Only one of the sources counts."""

    session: str
    counts: Literal["transcripts", "interstat"]
    """The source that counts: the transcripts, if they hold usage."""
    transcripts_billing: int
    transcripts_total: int
    interstat_billing: int
    interstat_total: int
    ratio: float | None
    """interstat's total / the transcripts'; null if either is 0."""
    words: str
    """How each source counts, if the two differ much; otherwise empty."""
    earlier: Earlier = Earlier()
    """What the session used before its usage began to count for this run, if this is its first run."""
    stated_billing: int | None = None
    stated_total: int | None = None
    """Claude Code's own sum of the session's tokens, if the transcript has one."""
    lower_bound: bool = False
    """True: some usage cannot be read from the transcripts, so more may have been used than is counted."""
    lower_bound_why: tuple[str, ...] = ()
    """The first reasons, each with its file."""
