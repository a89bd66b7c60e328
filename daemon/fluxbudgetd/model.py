"""The daemon's own values: frozen structs without behaviour beyond arithmetic.

Times are integers, microseconds since the Unix epoch, UTC. Tokens are integers >= 0.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import msgspec

from fluxbudgetd.wire.messages import (
    MAX_TOKENS,
    BudgetState,
    CostBasis,
    Enforcement,
    EstimateSource,
    RunStatus,
    TriageLine,
    TriageVerdict,
)

SourceState = Literal[
    "ok",
    "unread",
    "absent",
    "empty",
    "locked",
    "slow",
    "corrupt",
    "not_a_database",
    "schema_drift",
    "unreadable",
]
EventKind = Literal[
    "run.started",
    "run.changed",
    "run.finished",
    "phase.advanced",
    "phase.blocked",
    "budget.threshold",
    "budget.warning",
    "budget.exceeded",
    "budget.overridden",
    "source.degraded",
    "source.recovered",
]
EventData = dict[str, str | int | float | None]
Origin = Literal["asked", "bead"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Return a moment as microseconds since the epoch; a moment without a zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def to_text(at: int) -> str:
    """Return a time as ISO-8601 UTC text with microseconds: `2026-02-20T17:05:55.000000Z`."""
    return (_EPOCH + timedelta(microseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work with a token budget."""

    id: str
    scope: str | None
    project_dir: str
    goal: str
    complexity: int
    phases: tuple[str, ...]
    phase: str
    token_budget: int | None
    warn_pct: int
    enforcement: Enforcement
    cost_basis: CostBasis
    status: RunStatus
    started_at: int
    ended_at: int | None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """One record of tokens used, as a source gives it.

    `key` names the record within its session and source. `at` is None when the source's time cannot be read.
    `pending`: the record is there, its tokens are not yet.
    """

    key: int
    at: int | None
    agent: str
    model: str
    bead: str
    phase: str
    pending: bool
    input: int
    output: int
    cache_read: int
    cache_creation: int


class Counts(msgspec.Struct, frozen=True, gc=False):
    """A sum of usage records."""

    records: int = 0
    pending: int = 0
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_creation: int = 0

    @property
    def billing(self) -> int:
        """Return input + output: what costs money."""
        return self.input + self.output

    @property
    def total(self) -> int:
        """Return billing + cache_read + cache_creation."""
        return self.input + self.output + self.cache_read + self.cache_creation

    def tokens(self, basis: CostBasis) -> int:
        """Return the tokens that a budget of this basis counts."""
        return self.billing if basis == "billing" else self.total

    def capped(self) -> "Counts":
        """Return the sum as it can be written down: each count stops at `MAX_TOKENS`."""
        return Counts(*(min(count, MAX_TOKENS) for count in msgspec.structs.astuple(self)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.records - other.records,
            self.pending - other.pending,
            self.input - other.input,
            self.output - other.output,
            self.cache_read - other.cache_read,
            self.cache_creation - other.cache_creation,
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.records + other.records,
            self.pending + other.pending,
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_creation + other.cache_creation,
        )


class PhaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A phase that a run has completed: it lasted from `since` until before `until`.

    `measured` is what was measured when the run moved on. `estimate` (in tokens of the run's cost basis) counts instead
    of it, provisionally, until something is measured. `override`: why the run moved on with an exceeded budget.
    """

    phase: str
    since: int
    until: int
    measured: Counts
    estimate: int
    source: EstimateSource
    sample_size: int
    override: str | None = None


class Timeline(msgspec.Struct, frozen=True):
    """A run and the phases that it has completed, in the order of time."""

    run: Run
    completed: tuple[PhaseRecord, ...] = ()

    @property
    def since(self) -> int:
        """Return when the run entered the phase that it is in."""
        return self.completed[-1].until if self.completed else self.run.started_at

    def phase_at(self, at: int | None) -> str:
        """Return the phase that the run was in; before its start that is the first one, without a time the present."""
        if at is not None:
            for record in self.completed:
                if at < record.until:
                    return record.phase
        return self.run.phase


class BudgetThreshold(NamedTuple):
    """A percentage of a run's budget, and the kind of event that reports that it has been spent."""

    kind: EventKind
    pct: int


class Stint(NamedTuple):
    """A stretch of time that a session worked for a run, and whether anything has been measured of it for that run.

    `until` is None while it lasts.
    """

    since: int
    until: int | None
    measured: bool


class Cell(NamedTuple):
    """What a session's usage is summed by. `run` is None for usage that belongs to no run."""

    run: str | None
    phase: str
    agent: str
    model: str


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which a session belongs to a run: from `since` until before `until`.

    `first`: the session's first attachment, which reaches back to the session's start.
    """

    session: str
    run: str
    since: int
    until: int | None
    first: bool
    origin: Origin

    def covers(self, at: int | None) -> bool:
        """Tell whether a record of this time falls into the stretch; without a time it counts as the newest."""
        if at is None:
            return self.until is None
        return (self.first or at >= self.since) and (self.until is None or at < self.until)


class SessionSnapshot(msgspec.Struct, frozen=True):
    """A session's whole usage as one source has it now; it replaces the snapshot before.

    `digest` changes when the rows change. `records` is None when the digest is the one that the reader already knew.
    """

    digest: int
    records: tuple[Usage, ...] | None
    anomalies: int = 0


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a source can be read; if not, why, and what to do."""

    name: str
    path: str
    state: SourceState
    detail: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        """Tell whether the numbers are the source's present ones."""
        return self.state == "ok"


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a source gave. Empty unless the status is readable."""

    status: SourceStatus
    sessions: Mapping[str, SessionSnapshot] = {}
    by_scope: Mapping[str, tuple[str, ...]] = {}
    """scope → the sessions with a row that names it."""


class AgentSample(NamedTuple):
    """Rows of an agent whose total is known: how many, and the sums of their billing and total tokens."""

    agent: str
    rows: int
    billing: int
    total: int


class AgentRow(NamedTuple):
    """One measured row of an agent: `key` names it within the source."""

    key: int
    session: str
    at: int | None
    agent: str
    billing: int


class Triage(msgspec.Struct, frozen=True, kw_only=True):
    """Which review agents were launched, and which were not; in tokens of `cost_basis`.

    `budget` is what counted: the input type's (`type_budget`), or the run's remainder when that was the tighter one.
    `last_key` is the largest key among the session's records at that time.
    """

    id: str
    at: int
    run: str | None
    session: str | None
    last_key: int | None
    input_type: str
    model: str
    slicing: bool
    cost_basis: CostBasis
    enforcement: Enforcement
    min_agents: int
    type_budget: int
    sprint_remaining: int | None
    sprint_constrained: bool
    budget: int
    verdict: TriageVerdict
    override: str | None
    agents: tuple[TriageLine, ...]


class RecentUsage(msgspec.Struct, frozen=True):
    """The sum of a session's recent rows with one bead."""

    session: str
    bead: str
    counts: Counts


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, in the order of `seq` (increasing for ever). `run` is None for a source's events."""

    seq: int
    at: int
    run: str | None
    kind: EventKind
    data: EventData


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """A run's budget and what has become of it, in tokens of the run's cost basis."""

    budget: int | None
    measured: int
    provisional: int
    reserved: int
    spent: int
    remaining: int | None
    pct: float | None
    state: BudgetState


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted sub-agent's estimate, in tokens of the run's cost basis.

    `agent` is its plain name; `agent_id` is known from its start on, `call` names the launch that was admitted.
    `ended_at`: it was told to have ended.
    """

    id: int
    run: str
    session: str
    agent: str
    tokens: int
    at: int
    agent_id: str | None = None
    ended_at: int | None = None
    call: str | None = None


class Instance(NamedTuple):
    """A sub-agent of which usage has been measured: a transcript of its own, or a row of interstat's.

    `at` is its first usage; `agent_id` is None when its source does not know it.
    """

    session: str
    agent: str
    agent_id: str | None
    at: int | None


class Copy(msgspec.Struct, frozen=True, gc=False):
    """One line's usage of a response. A response is written on several lines: their copies have the same `message`.

    `message` names the response within the session, the same after a restart; `key` names it together with its request.
    `file` is the number of the transcript that the line stands in. `at` is None when the line's time cannot be read,
    `model` empty when none has answered.
    """

    message: int
    key: int
    sidechain: bool
    file: int
    at: int | None
    agent: str
    model: str
    input: int
    output: int
    cache_read: int
    cache_creation: int

    @property
    def size(self) -> int:
        """Return all tokens that the line tells of."""
        return self.input + self.output + self.cache_read + self.cache_creation


class TranscriptFile(msgspec.Struct, frozen=True):
    """How far a transcript has been read: up to `offset`, the end of the last complete line.

    `number` names the file within its session for ever. `mark` is a digest of the bytes just before `offset`: by it a
    file is known that was rewritten. `skipped`: lines that could not be read; `anomalies`: counts that were none.
    """

    number: int
    path: str
    dev: int
    ino: int
    offset: int
    mark: bytes
    agent: str
    skipped: int = 0
    anomalies: int = 0


class TranscriptReading(msgspec.Struct, frozen=True):
    """What one look at a session's transcripts gave: what has come since the last look.

    `files`: every file of the session that was ever read, with its new position; one that has gone keeps its last.
    `reset`: the files whose copies of earlier looks are void; they are read again from their start. None: no file.
    `more`: there is more to read, look again.
    """

    copies: tuple[Copy, ...]
    files: tuple[TranscriptFile, ...]
    reset: frozenset[int] | None
    more: bool
    status: SourceStatus
