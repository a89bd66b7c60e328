"""One run's account and one session's account: plain state, and what follows from it without waiting.

Single records stay in the ledger. An account holds only sums per (run, phase, agent, model), so memory does not grow
with the number of rows.
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from fluxbudgetd.errors import RequestTimeoutError
from fluxbudgetd.model import (
    Attachment,
    Balance,
    BudgetThreshold,
    Cell,
    Counts,
    PhaseRecord,
    Response,
    Run,
    SourceStatus,
    Timeline,
    Usage,
)
from fluxbudgetd.policy import attribution, budget, phases
from fluxbudgetd.policy.burn import MINUTE
from fluxbudgetd.sources.transcripts import MAIN

#: The epoch of rows that have never been read.
NEVER = -1
#: The name under which other programs' dispatches are listed, instead of a session.
INTERCORE = "intercore"


class Stamp(NamedTuple):
    """A point in the histories of both sources: interstat's epoch and the transcript generation.

    `freshness` explains both numbers and is the only place that compares them.
    """

    rows: int
    transcripts: int


class Sums(enum.Enum):
    """What a session's sums include."""

    #: Nothing was summed since the daemon started.
    UNKNOWN = "unknown"
    #: interstat's rows alone, without the transcripts' responses that are in the ledger.
    ROWS = "rows"
    #: Both sources.
    WHOLE = "whole"
    #: Possibly outdated, because the ledger could not be read: older than the last measured usage, or from before a run
    #: started.
    UNREADABLE = "unreadable"


# Python 3.11 takes four times as long for a member of an enumeration as for a global name.
_UNKNOWN, _WHOLE, _UNREADABLE = Sums.UNKNOWN, Sums.WHOLE, Sums.UNREADABLE


class Standing(msgspec.Struct, frozen=True):
    """A run, its balance, and why the numbers are stale (None: fresh)."""

    run: Run
    balance: Balance
    stale_why: str | None


class ModelUse(NamedTuple):
    """The model of a response, and when it was."""

    at: int
    model: str


class SessionAccount(msgspec.Struct):
    """A session's attachments, oldest first, and the sums of its last measured usage.

    `implied` is the attachment that its rows imply. It counts if no client requested one.
    `counts_transcripts` is true if `cells` come from its transcripts, which hold usage; otherwise they come from
    interstat's rows. `figures` has the sum of each source by the source's name, `minutes` the recent usage by minute
    since 1970, `earliest` the time of the first record that an attachment counts, `latest` the main loop's latest
    response. `active_since` is when a hook first showed, since the daemon started, that the session has had a response.
    `digest` identifies the last rows that were kept (`RowStore`), and `rows_epoch` is interstat's epoch at which rows
    were read last.
    """

    attachments: list[Attachment] = msgspec.field(default_factory=list)
    implied: Attachment | None = None
    sums: Sums = Sums.UNKNOWN
    digest: int | None = None
    rows_epoch: int = NEVER
    counts_transcripts: bool = False
    figures: dict[str, Counts] = msgspec.field(default_factory=dict)
    cells: dict[Cell, Counts] = msgspec.field(default_factory=dict)
    minutes: dict[int, Counts] = msgspec.field(default_factory=dict)
    earliest: int | None = None
    latest: ModelUse | None = None
    active_since: int | None = None
    anomalies: int = 0

    @property
    def current(self) -> Sequence[Attachment]:
        """The attachments that count: those that clients requested, otherwise the one that the rows imply."""
        if self.attachments:
            return self.attachments
        return () if self.implied is None else (self.implied,)

    @property
    def run(self) -> str | None:
        """The id of the run that the session belongs to now; None if it belongs to none."""
        current = self.current
        return current[-1].run if current and current[-1].until is None else None

    def note_models(self, records: Sequence[Usage | Response]) -> None:
        """Note the latest response of the main loop among these, oldest first."""
        own = (each for each in reversed(records) if each.agent == MAIN and each.model and each.at is not None)
        last = next(own, None)
        if last is not None and last.at is not None and (self.latest is None or last.at >= self.latest.at):
            self.latest = ModelUse(last.at, last.model)

    def oldest_minute(self) -> int:
        """Return the oldest whole minute, since 1970, that the session's current run counts."""
        counts_from = self.current[-1].counts_from
        # Usage that this run does not count may share the minute.
        is_shared = len(self.current) > 1 or any(cell.earlier_for for cell in self.cells)
        return counts_from // MINUTE + is_shared

    def earlier(self, run: str) -> Counts:
        """Return what was used before the session's first attachment counts, if that is an attachment to this run."""
        return sum((counts for cell, counts in self.cells.items() if cell.earlier_for == run), Counts())

    @property
    def is_followed(self) -> bool:
        """Return True if the session, or some of its usage, belongs to a run."""
        return bool(self.current) or any(cell.run is not None for cell in self.cells)


class RunAccount(msgspec.Struct):
    """A run and what is known about its numbers.

    `sessions` are those that may have usage of the run. `completed` are the phases it has left, `fired` the thresholds
    that were reported for its current budget, `reserved` the tokens that admitted sub-agents are expected to cost.
    `dispatches` is other programs' usage, which intercore has recorded for the run; it belongs to no session.
    `shown` says what the numbers show, `interstat` is that source's status when it was last read for this run, and
    `has_sessions` is true once the sessions that name the run's scope were read from the ledger. `latest` is the latest
    time in the run's history: no later change gets an earlier one, even if the clock is set back.
    """

    run: Run
    started_as: Run
    completed: tuple[PhaseRecord, ...] = ()
    fired: frozenset[BudgetThreshold] = frozenset()
    reserved: int = 0
    sessions: dict[str, SessionAccount] = msgspec.field(default_factory=dict)
    dispatches: tuple[Usage, ...] = ()
    has_sessions: bool = False
    shown: Stamp = Stamp(NEVER, 0)
    interstat: SourceStatus | None = None
    latest: int = 0
    _measured: Counts | None = None
    _provisional: tuple[PhaseRecord, ...] | None = None
    # The balance, and the run and the reservation that it was computed for.
    _balance: tuple[Balance, Run, int] | None = None

    def clear_cache(self) -> None:
        """Have `measured`, `provisional` and `balance` computed again on their next call."""
        self._measured = self._provisional = self._balance = None

    @property
    def sums(self) -> Sums:
        """Return `UNKNOWN` if any session's sums are that, else `UNREADABLE` if any session's are, else `WHOLE`."""
        if not self.has_sessions:
            return _UNKNOWN
        found = _WHOLE
        for session in self.sessions.values():
            if session.sums is _UNKNOWN:
                return _UNKNOWN
            if session.sums is _UNREADABLE:
                found = _UNREADABLE
        return found

    @property
    def is_loaded(self) -> bool:
        """Return True if the run's last known numbers are in memory, fresh or not."""
        return self.sums is not _UNKNOWN

    def require_loaded(self) -> None:
        """Raise `RequestTimeoutError` unless the last known numbers are in memory: 0 would be wrong."""
        if not self.is_loaded:
            raise RequestTimeoutError(
                f"the numbers of run {self.run.id} are being read for the first time since fluxbudgetd started",
                "ask again, or give more --timeout",
            )

    def cells(self) -> Iterator[tuple[str, Cell, Counts]]:
        """Yield the run's sums, each with its session, ordered by session id; then the sums of dispatches."""
        yield from self.own_cells()
        timeline = Timeline(self.run, self.completed)
        for record in self.dispatches:
            phase = attribution.phase_of(record, timeline)
            yield INTERCORE, Cell(self.run.id, phase, record.agent, record.model), record.counts

    def own_cells(self) -> Iterator[tuple[str, Cell, Counts]]:
        """Yield the sums of the run's sessions, each with its session, ordered by session id."""
        for name in sorted(self.sessions):
            for cell, counts in self.sessions[name].cells.items():
                if cell.run == self.run.id:
                    yield name, cell, counts

    def measured(self) -> Counts:
        """Return the sum of the run's measured usage."""
        if self._measured is None:
            self._measured = sum((counts for _, _, counts in self.cells()), Counts())
        return self._measured

    def provisional(self) -> tuple[PhaseRecord, ...]:
        """Return the completed phases whose estimates count, because they have no measured usage yet."""
        if self._provisional is None:
            self._provisional = self.would_count(self.completed)
        return self._provisional

    def balance(self, run: Run | None = None) -> Balance:
        """Return the run's balance by the last known numbers, or what it would be if the run were changed to `run`."""
        run, known = run or self.run, self._balance
        if known is not None and known[1] is run and known[2] == self.reserved:
            return known[0]
        measured = self.measured().tokens(run.cost_basis)
        provisional = sum(record.estimate for record in self.provisional())
        balance = budget.balance(run, measured, provisional, self.reserved)
        self._balance = (balance, run, self.reserved)
        return balance

    def by_phase(self) -> dict[str, Counts]:
        """Return the run's measured usage by phase."""
        sums: dict[str, Counts] = {}
        for _, cell, counts in self.cells():
            sums[cell.phase] = sums.get(cell.phase, Counts()) + counts
        return sums

    def would_count(self, completed: tuple[PhaseRecord, ...]) -> tuple[PhaseRecord, ...]:
        """Return those of these phases whose estimates would count if the run had completed them."""
        if not completed:
            return ()
        measured: set[str] = set()
        working: set[str] = set()
        for name, cell, counts in self.cells():
            if counts.total:
                measured.add(cell.phase)
                working.add(name)
        stints = [
            attribution.stint(attachment, session.earliest, measured=name in working)
            for name, session in self.sessions.items()
            for attachment in session.current
            if attachment.run == self.run.id
        ]
        return phases.provisional(completed, measured, stints)

    def minutes(self) -> dict[int, int]:
        """Return the recent usage of the run's current sessions by minute, in tokens of its cost basis."""
        used: dict[int, int] = {}
        for session in self.sessions.values():
            if session.run != self.run.id:
                continue
            oldest = session.oldest_minute() if session.minutes else 0
            for minute, counts in session.minutes.items():
                if minute >= oldest:
                    used[minute] = used.get(minute, 0) + counts.tokens(self.run.cost_basis)
        return used

    def earlier(self) -> Counts:
        """Return what the run's sessions used before their usage began to count for it."""
        return sum((session.earlier(self.run.id) for session in self.sessions.values()), Counts())

    def attachments(self) -> list[Attachment]:
        """Return the run's attachments, both requested and implied, oldest first."""
        of_all_runs = (attachment for session in self.sessions.values() for attachment in session.current)
        own = (attachment for attachment in of_all_runs if attachment.run == self.run.id)
        return sorted(own, key=lambda attachment: (attachment.since, attachment.session))
