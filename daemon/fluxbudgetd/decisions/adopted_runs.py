"""Adopt runs from rows of intercore's databases, and follow these rows.

Each change is written to the ledger first, then to memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import anyio
import msgspec
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.attachments import SessionAttachments
from fluxbudgetd.decisions.thresholds import Thresholds
from fluxbudgetd.ledger import Ledger, LedgerWriter, NewEvent
from fluxbudgetd.model import (
    BudgetThreshold,
    Counts,
    EventData,
    IcRun,
    IntercoreReading,
    PhaseMove,
    PhaseRecord,
    Run,
    SessionClaim,
    Usage,
)
from fluxbudgetd.policy import adoption, loosening, phases, runs
from fluxbudgetd.policy.adoption import Changed, Moved, Step
from fluxbudgetd.policy.advance import advanced_data
from fluxbudgetd.policy.loosening import Loosening
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import INTERCORE, RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.row_store import RowStore

log = structlog.get_logger()

# How long to wait for the numbers with which a change is compared. No request waits this long.
_WAIT_SECONDS = 2.0


class Candidate(msgspec.Struct, frozen=True):
    """An active row without a run: where its project is, and whether a rule of the project demands a hard limit.

    `elsewhere` is the database that its project really uses, if that is another one. `moved_from` is the database that
    had this run before, if that no longer exists: the project was renamed.
    """

    ic: IcRun
    project_dir: str
    is_hard: bool = False
    elsewhere: str | None = None
    moved_from: str | None = None


class Moves(NamedTuple):
    """A row's phase moves that may be new, and the number of its last move."""

    new: Sequence[PhaseMove]
    last: int

    @classmethod
    def of(cls, ic: IcRun, reading: IntercoreReading) -> Self:
        """Return the moves of a row."""
        return cls(reading.moves.get(ic.id, ()), reading.last_moves.get(ic.id, 0))


class AdoptedRuns:
    """Applies readings of intercore's databases, one at a time for each database."""

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        attachments: SessionAttachments,
        ledger: Ledger,
        writer: LedgerWriter,
        settings: Settings,
        clock: Callable[[], int],
        thresholds: Thresholds,
        on_runs_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._totals = totals
        self._attachments = attachments
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._runs_lock = attachments.runs_lock
        self._thresholds = thresholds
        self._on_runs_change = on_runs_change
        # (database, intercore's id) → our run's id
        self._ids: dict[tuple[str, str], str] = {}
        # intercore's id → the database that has the run
        self._databases: dict[str, str] = {}
        self._dispatches = RowStore(INTERCORE, ledger)
        self._backlog = writer.backlog("usage of other programs", self._dispatches.save)

    async def load(self) -> None:
        """Read the ledger, after the runs; raises `LedgerError`."""
        for account in self._accounts.runs.values():
            self._note(account.run)
        for run, records in (await self._ledger.usage.of_runs()).items():
            if run in self._accounts.runs:
                self._accounts.put_dispatches(run, records)

    def of(self, database: str) -> list[RunAccount]:
        """Return the followed runs of a database."""
        return [account for account in self._totals.followed() if database_of(account.run) == database]

    def last_moves(self, database: str) -> dict[str, int]:
        """Return, by intercore's id, the number of the last move that each followed run of a database has made."""
        adoptions = (account.run.adopted for account in self.of(database))
        return {adopted.run_id: adopted.last_move for adopted in adoptions if adopted is not None}

    def account_of(self, database: str, run_id: str) -> RunAccount | None:
        """Return the run of a row, by intercore's id; None if the row was not adopted."""
        known = self._ids.get((database, run_id))
        return None if known is None else self._accounts.runs[known]

    def other_database(self, database: str, run_id: str) -> str | None:
        """Return the other database that has a followed run with this id of intercore's; None if there is none."""
        other = self._databases.get(run_id)
        return None if other == database else other

    def new(self, database: str, reading: IntercoreReading) -> list[IcRun]:
        """Return the active rows that may be adopted, oldest first. The parent of a portfolio has no project."""
        found = [
            ic
            for ic in reading.runs.values()
            if ic.status == "active" and ic.project_dir and (database, ic.id) not in self._ids
        ]
        return sorted(found, key=lambda ic: (ic.created_at, ic.id))

    def softened(self, database: str, reading: IntercoreReading) -> list[RunAccount]:
        """Return the hard runs whose rows are soft, except those where that is kept or withheld."""
        return [
            account
            for account in self.of(database)
            if account.run.enforcement == "hard"
            and account.run.adopted is not None
            and "enforcement" not in (*account.run.adopted.kept, *account.run.adopted.withheld)
            and (ic := reading.runs.get(account.run.adopted.run_id)) is not None
            and not ic.is_hard
        ]

    def missing(self, database: str, reading: IntercoreReading) -> list[str]:
        """Return the active runs whose rows were removed."""
        return [
            account.run.id
            for account in self.of(database)
            if account.run.status == "active"
            and account.run.adopted is not None
            and account.run.adopted.run_id not in reading.runs
        ]

    async def adopt(self, candidate: Candidate, database: str, reading: IntercoreReading) -> str | None:
        """Adopt a row, or link it to the run that was started by hand for it. Return why it is not adopted, or None.

        Raises `LedgerError`.
        """
        ic = candidate.ic
        await self._settings.refresh_phase_costs(candidate.project_dir, anyio.current_time() + _WAIT_SECONDS)
        if (reason := adoption.refusal(ic)) is not None:
            return f"run {ic.id[:200]} of {database} is not adopted: {reason}"
        if candidate.elsewhere is not None:
            return f"run {ic.id} of {database} is not adopted: its project {ic.project_dir} uses {candidate.elsewhere}"
        async with self._runs_lock:
            same = self._accounts.runs.get(ic.id)
            other = self.other_database(database, ic.id)
            if other is None and same is not None and database_of(same.run):
                other = database_of(same.run)  # of another row
            found = same or self._by_hand(ic, reading)
            if other is not None and other == candidate.moved_from:
                await self._move(self._accounts.runs[self._ids[other, ic.id]], candidate, database)
            elif other is not None:
                return f"run {ic.id} of {database} is not adopted: {other} has a run with this id, too"
            elif found is None:
                await self._start(candidate, database, Moves.of(ic, reading))
            else:
                await self._link(found, candidate, database, Moves.of(ic, reading))
        log.info("run adopted", run=ic.id, database=database)
        return None

    def _by_hand(self, ic: IcRun, reading: IntercoreReading) -> RunAccount | None:
        """Return the active run that was started by hand for the row's bead. The newest row of a bead gets it."""
        bead = adoption.scope(ic)
        found = None if bead is None else self._accounts.run_of_scope(bead)
        if found is None or found.run.status != "active" or database_of(found.run):
            return None
        rivals = [each for each in reading.runs.values() if each.status == "active" and adoption.scope(each) == bead]
        return found if max(rivals, key=lambda each: (each.created_at, each.id)).id == ic.id else None

    async def _start(self, candidate: Candidate, database: str, moves: Moves) -> None:
        now = self._clock()
        # The clock may have been set back since. A run that starts in the future would have no usage.
        ic = msgspec.structs.replace(candidate.ic, created_at=min(candidate.ic.created_at, now))
        run = adoption.adopted(
            ic,
            moves.new,
            database,
            candidate.project_dir,
            defaults=self._settings.config.runs,
            is_hard=candidate.is_hard,
        )
        moved = self._moved(run, run.started_at, ic, moves, Counts())
        completed = tuple(step.record for step in moved.steps)
        data: EventData = {
            "token_budget": run.token_budget,
            "scope": run.scope,
            "phase": moved.run.phase,
            "adopted_from": database,
        }
        await self.start(moved.run, run, completed, data, now)

    async def start(
        self, run: Run, started_as: Run, completed: tuple[PhaseRecord, ...], data: EventData, at: int
    ) -> None:
        """Write a new run, and request its numbers. The caller holds the runs lock. Raises `LedgerError`."""
        await self._ledger.runs.start(run, started_as, completed=completed, events=[("run.started", data)], at=at)
        account = self._accounts.put_run(run, started_as)
        self._accounts.put_phases(run.id, completed)
        self._note(run)
        await self._totals.tallier.find_sessions(account)
        self._totals.refresher.request_refresh({run.id})
        self._on_runs_change()

    async def _link(self, account: RunAccount, candidate: Candidate, database: str, moves: Moves) -> None:
        defaults = self._settings.config.runs
        run = adoption.linked(account.run, candidate.ic, moves.last, database, defaults, is_hard=candidate.is_hard)
        data: EventData = {"adopted_from": database, "intercore_run": candidate.ic.id}
        await self._ledger.runs.save(run, events=[("run.changed", data)], at=self._now(account))
        self._accounts.put_run(run)
        self._note(run)
        # It may have a scope now.
        account.has_sessions = False
        await self._totals.tallier.find_sessions(account)

    async def _move(self, account: RunAccount, candidate: Candidate, database: str) -> None:
        """Make a run follow its row in the database that has replaced its former one."""
        before = database_of(account.run)
        run = adoption.moved_to(account.run, database, candidate.project_dir)
        data: EventData = {"adopted_from": database, "moved_from": before}
        await self._ledger.runs.save(run, events=[("run.changed", data)], at=self._now(account))
        del self._ids[before, candidate.ic.id]
        self._accounts.put_run(run)
        self._note(run)
        self._on_runs_change()

    def holds_end(self, account: RunAccount, ic: IcRun) -> bool:
        """Return True if the end of a row does not end its run: a person has made that hard, and it is exceeded.

        Any session can create a row for the run's bead and end it.
        """
        run, started_as = account.run, account.started_as
        adopted = run.adopted
        if adopted is None or started_as.adopted is not None or run.enforcement != "hard":
            return False
        is_end = run.status == "active" and adoption.status(ic) != "active" and self._follows_status(run, ic)
        is_meant = started_as.enforcement == "hard" or "enforcement" in adopted.kept
        return is_end and is_meant and account.is_loaded and account.balance().state == "exceeded"

    async def follow(self, account: RunAccount, ic: IcRun, moves: Moves, *, is_hard: bool) -> None:
        """Make a run follow its row. `is_hard`: a rule of the project demands a hard limit. Raises `LedgerError`."""
        run = account.run
        if run.adopted is None or not (self._follows_status(run, ic) or self._differs(account, ic, moves, is_hard)):
            return
        deadline = anyio.current_time() + _WAIT_SECONDS
        await self._settings.refresh_phase_costs(run.project_dir, deadline)
        # Whether a new budget or an end matters depends on the run's numbers.
        await self._totals.refresher.refresh([run.id], deadline=deadline)
        account.require_loaded()
        async with self._runs_lock:
            await self._follow(account, ic, moves, is_hard=is_hard)

    def _differs(self, account: RunAccount, ic: IcRun, moves: Moves, is_hard: bool) -> bool:
        run = account.run
        if run.status != "active":
            return False
        changed = adoption.settings(run, ic, is_hard=is_hard)
        since = self._accounts.timelines[run.id].since
        return changed.run != run or self._moved(run, since, ic, moves, Counts()).run != run

    @staticmethod
    def _follows_status(run: Run, ic: IcRun) -> bool:
        is_kept = run.adopted is not None and "status" in run.adopted.kept
        is_known = not any(fault.startswith("status ") for fault in ic.faults)
        return adoption.status(ic) != run.status and is_known and not is_kept

    async def _follow(self, account: RunAccount, ic: IcRun, moves: Moves, *, is_hard: bool) -> None:
        before = account.run
        events: list[NewEvent] = []
        run = before
        follows_status, status = self._follows_status(before, ic), adoption.status(ic)
        if follows_status and status == "active":
            run = msgspec.structs.replace(run, status="active", ended_at=None)
            events.append(("run.changed", {"status": "active", "via": adoption.VIA}))
        if run.status != "active":
            return
        changed = adoption.settings(run, ic, is_hard=is_hard)
        events += _changes(run, changed.run)
        events += self._loosening_events(run, changed.loosened)
        measured = account.by_phase().get(run.phase, Counts())
        moved = self._moved(changed.run, self._accounts.timelines[run.id].since, ic, moves, measured)
        run = moved.run
        events += self._phase_events(account, moved.steps)
        fired, passed = self._thresholds.after_change(account, run)
        events += passed
        if follows_status and status != "active" and not self.holds_end(account, ic):
            ends = loosening.of_end(account.balance(run), status)
            events += self._loosening_events(run, [adoption.via(each) for each in ends])
            events.append(("run.finished", {"status": status, "via": adoption.VIA}))
            ended_at = max(min(ic.ended_at or ic.updated_at, self._clock()), account.latest)
            run = msgspec.structs.replace(run, status=status, ended_at=ended_at)
        if run != before:
            await self._save(account, run, moved.steps, events, fired)

    async def save(self, account: RunAccount, change: Callable[[Run], Changed], owner: str) -> None:
        """Change a run with `change` (see `policy.adoption.followed`), and write it. Raises `LedgerError`.

        `owner` is the program that the events name.

        Raises `RequestTimeoutError` if the run's numbers are not known: a new budget is compared with them.
        """
        account.require_loaded()
        async with self._runs_lock:
            changed = change(account.run)
            if changed.run != account.run:
                fired, passed = self._thresholds.after_change(account, changed.run)
                loosened = self._loosening_events(account.run, changed.loosened)
                events = [*_changes(account.run, changed.run, owner), *loosened, *passed]
                await self._save(account, changed.run, (), events, fired)

    async def _save(
        self,
        account: RunAccount,
        run: Run,
        steps: Sequence[Step],
        events: Sequence[NewEvent],
        fired: frozenset[BudgetThreshold],
    ) -> None:
        before, records = account.run, [step.record for step in steps]
        await self._ledger.runs.save(
            run,
            completed=(len(account.completed), records),
            fired=None if fired == account.fired else fired,
            events=events,
            at=self._now(account),
        )
        account.fired = fired
        self._accounts.put_run(run)
        if records or run.phases != before.phases:
            self._accounts.put_phases(run.id, (*account.completed, *records))
            for session in list(account.sessions):
                await self._totals.tallier.retally(session)
        self._thresholds.evaluate(account)
        if run.status != before.status:
            self._totals.refresher.request_refresh({run.id})
            self._on_runs_change()

    def put_dispatches(self, account: RunAccount, records: Sequence[Usage]) -> None:
        """Count other programs' dispatches for a run. A dispatch still counts after its row was deleted."""
        known = {record.key: record for record in account.dispatches}
        merged = known | {record.key: record for record in records}
        if merged != known:
            self._accounts.put_dispatches(account.run.id, tuple(merged.values()))
            self._dispatches.put(account.run.id, account.dispatches)
            self._backlog.request()
            self._thresholds.evaluate(account)

    def run_of_claim(self, database: str, claim: SessionClaim) -> RunAccount | None:
        """Return the followed run that a claim means; None if there is none."""
        if claim.run is not None:
            account = self.account_of(database, claim.run)
        else:
            account = None if claim.bead is None else self._accounts.run_of_scope(claim.bead)
        return account if account is not None and runs.is_followed(account.run, self._clock()) else None

    def _moved(self, run: Run, since: int, ic: IcRun, moves: Moves, measured: Counts) -> Moved:
        calibrations = self._settings.phase_calibrations(run.project_dir)

        def estimate(phase: str) -> phases.PhaseEstimate:
            return phases.estimate(phase, run.cost_basis, self._settings.config.phases, *calibrations)

        return adoption.moved(
            run, since, ic, moves.new, now=self._clock(), last_move=moves.last, measured=measured, estimate=estimate
        )

    @staticmethod
    def _phase_events(account: RunAccount, steps: Sequence[Step]) -> list[NewEvent]:
        counting = account.would_count((*account.completed, *(step.record for step in steps)))
        return [
            (
                "phase.advanced",
                {
                    **advanced_data(step.to, step.record, step.record.estimate if step.record in counting else 0),
                    "kind": step.kind,
                },
            )
            for step in steps
        ]

    @staticmethod
    def _loosening_events(run: Run, loosened: Sequence[Loosening]) -> list[NewEvent]:
        if run.enforcement != "hard":
            return []
        return [("run.loosened", loosening.data(run, each, ())) for each in loosened]

    def _note(self, run: Run) -> None:
        if run.adopted is not None and run.adopted.database:
            self._ids[run.adopted.database, run.adopted.run_id] = run.id
            self._databases[run.adopted.run_id] = run.adopted.database

    def _now(self, account: RunAccount) -> int:
        return max(self._clock(), account.latest)


def database_of(run: Run) -> str:
    """Return the path of the intercore database that has a run; empty if there is none."""
    return "" if run.adopted is None else run.adopted.database


def _changes(before: Run, after: Run, owner: str = adoption.VIA) -> list[NewEvent]:
    names = ("token_budget", "warn_pct", "enforcement")
    data: EventData = {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
    return [("run.changed", {**data, "via": owner})] if data else []
