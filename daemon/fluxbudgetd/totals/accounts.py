"""What the engine remembers: runs, and per session its attachments and the sums of its usage.

Single records stay in the ledger; here are only sums per (run, phase, agent, model), so that memory does not grow with
the rows. Nothing here waits or reads a file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from fluxbudgetd.errors import NoRunError, RequestTimeoutError
from fluxbudgetd.model import (
    Attachment,
    Balance,
    BudgetThreshold,
    Cell,
    Counts,
    PhaseRecord,
    Run,
    SourceStatus,
    Timeline,
)
from fluxbudgetd.policy import attribution, budget, phases
from fluxbudgetd.policy.burn import MINUTE
from fluxbudgetd.policy.runs import is_followed
from fluxbudgetd.wire.messages import Hints


class RunAccount(msgspec.Struct):
    """A run and what is known of its numbers.

    `epoch` is interstat's epoch that the numbers show (-1: they have to be looked at), `status` what it was like at the
    last look. Transcripts have to be looked at while `live` is less than `live_needed`. `sessions` are those that may
    have usage of the run. `measured` caches the sum of its usage, `provisional` the phases whose estimates count.
    `fired` is what has been told for its present budget, `reserved` what admitted sub-agents are expected to cost.
    """

    run: Run
    started_as: Run
    completed: tuple[PhaseRecord, ...] = ()
    fired: frozenset[BudgetThreshold] = frozenset()
    reserved: int = 0
    epoch: int = -1
    live_needed: int = 0
    live: int = 0
    status: SourceStatus | None = None
    touched: bool = False
    sessions: set[str] = msgspec.field(default_factory=set)
    measured: Counts | None = None
    provisional: tuple[PhaseRecord, ...] | None = None

    def forget_sums(self) -> None:
        """Have the sums made anew when they are asked for."""
        self.measured = self.provisional = None


class SessionAccount(msgspec.Struct):
    """A session's attachments, in the order of time, the sums of its last measured usage, its first record's time.

    `live`: the sums are those of its transcripts, which hold usage; else those of interstat's rows. `figures` has the
    sum of each source, by its name. `whole`: they were made of both sources once; `unsummed`: they are older than what
    they are made of, because the ledger could not be read.
    `minutes`: what was used of late, by the minute since the epoch.
    `epoch`: the source's epoch at which it was last read. `scope_version`: that of the accounts when it was last
    summed; a run with a scope that was added since may own some of its rows.
    """

    attachments: list[Attachment] = msgspec.field(default_factory=list)
    implied: Attachment | None = None
    digest: int | None = None
    epoch: int = -1
    scope_version: int = -1
    loaded: bool = False
    unsummed: bool = False
    whole: bool = False
    live: bool = False
    figures: dict[str, Counts] = msgspec.field(default_factory=dict)
    cells: dict[Cell, Counts] = msgspec.field(default_factory=dict)
    minutes: dict[int, Counts] = msgspec.field(default_factory=dict)
    earliest: int | None = None
    anomalies: int = 0

    @property
    def current(self) -> Sequence[Attachment]:
        """Return the attachments that count: the asked ones, else the one that the session's rows imply."""
        if self.attachments:
            return self.attachments
        return () if self.implied is None else (self.implied,)

    @property
    def followed(self) -> bool:
        """Tell whether the session belongs, or some of its usage belongs, to a run."""
        return bool(self.current) or any(cell.run is not None for cell in self.cells)


class Accounts:
    """All runs, and the sessions that were looked at. `on_change` is called with every run that may have changed."""

    def __init__(self, on_change: Callable[[str], None] = lambda _run: None) -> None:
        self._on_change = on_change
        self.runs: dict[str, RunAccount] = {}
        self.timelines: dict[str, Timeline] = {}
        self.sessions: dict[str, SessionAccount] = {}
        self.scopes: dict[str, list[Run]] = {}
        # Grows with every change of runs or attachments: a tally that took a while can tell whether it is still right.
        self.version = 0
        # Grows when a run with a scope comes.
        self.scope_version = 0
        # What a question about the active runs or about a session has to go through does not grow with the history.
        self._active: dict[str, RunAccount] = {}
        self._ended: dict[str, RunAccount] = {}
        self._joined: dict[str, set[str]] = {}

    def put_run(self, run: Run, started_as: Run | None = None) -> RunAccount:
        """Add a run, or replace it by its changed self."""
        self.version += 1
        known = self.runs.get(run.id)
        new = known is None
        if known is None:
            known = self.runs[run.id] = RunAccount(run, started_as or run)
        known.run = run
        self.timelines[run.id] = Timeline(run, known.completed)
        (self._active if run.ended_at is None else self._ended)[run.id] = known
        if run.ended_at is not None:
            self._active.pop(run.id, None)
        if run.scope is not None:
            self.scope_version += new
            others = [other for other in self.scopes.get(run.scope, []) if other.id != run.id]
            self.scopes[run.scope] = sorted([*others, run], key=lambda one: (one.started_at, one.id))
        self._on_change(run.id)
        return known

    def put_phases(self, run_id: str, completed: tuple[PhaseRecord, ...]) -> None:
        """Replace the phases that a run has completed."""
        self.version += 1
        state = self.runs[run_id]
        state.completed = completed
        state.forget_sums()
        self.timelines[run_id] = Timeline(state.run, completed)
        self._on_change(run_id)

    def put_reserved(self, run_id: str, tokens: int) -> None:
        """Note what a run's admitted sub-agents are expected to cost."""
        state = self.runs[run_id]
        if state.reserved != tokens:
            state.reserved = tokens
            self._on_change(run_id)

    def put_attachments(self, attachments: Iterable[Attachment]) -> None:
        """Add attachments, or replace those that begin at the same time."""
        self.version += 1
        for one in attachments:
            state = self.session(one.session)
            kept = [other for other in state.attachments if other.since != one.since]
            state.attachments = sorted([*kept, one], key=lambda each: each.since)
            state.digest = None
            # The run that it leaves is different, too.
            for run in {one.run, *(other.run for other in kept)}.intersection(self.runs):
                self._on_change(run)
            if one.run in self.runs:
                # What was read of the session before it belonged here may be older than the run's numbers.
                self.join(self.runs[one.run], one.session)
                self.runs[one.run].epoch = -1
                self.runs[one.run].forget_sums()

    def session(self, name: str) -> SessionAccount:
        """Return what is known of a session, making an empty entry when nothing is."""
        return self.sessions.setdefault(name, SessionAccount())

    def is_followed(self, name: str) -> bool:
        """Tell whether a session belongs to a run, or has to be looked at for one."""
        known = self.sessions.get(name)
        return (known is not None and known.followed) or name in self._joined

    def is_summed(self, state: RunAccount) -> bool:
        """Tell whether a run's sums are made of all that is known."""
        return not any(self.session(name).unsummed for name in state.sessions)

    def is_loaded(self, state: RunAccount) -> bool:
        """Tell whether a run's last known numbers are there, be they old or new."""
        return state.touched and all(self.session(name).loaded for name in state.sessions)

    def require_loaded(self, state: RunAccount) -> None:
        """Raise `RequestTimeoutError` when not even a run's last known numbers are there.

        Saying "nothing spent" would be a lie.
        """
        if not self.is_loaded(state):
            raise RequestTimeoutError(
                f"the numbers of run {state.run.id} are being read for the first time since fluxbudgetd started",
                "ask again, or give more --timeout",
            )

    def join(self, state: RunAccount, session: str) -> None:
        """Note that a session may have usage of a run."""
        state.sessions.add(session)
        self._joined.setdefault(session, set()).add(state.run.id)

    def forget_stranger(self, name: str) -> bool:
        """Drop what is known of a session that has nothing to do with any run; tells whether it has nothing."""
        state = self.sessions.get(name)
        if (state is not None and state.followed) or name in self._joined:
            return False
        self.sessions.pop(name, None)
        return True

    def put_sums(self, session: str, cells: Mapping[Cell, Counts], earliest: int | None) -> None:
        """Replace the sums of a session's usage."""
        state = self.session(session)
        self._touch_runs(session, {cell.run for cell in (*state.cells, *cells)})
        state.scope_version = self.scope_version
        state.cells = dict(cells)
        state.earliest = earliest
        state.loaded = True

    def shift_sums(
        self, session: str, gone: Mapping[Cell, Counts], new: Mapping[Cell, Counts], earliest: int | None
    ) -> None:
        """Change the sums of a session's usage by what counts no more and what counts now."""
        state = self.session(session)
        self._touch_runs(session, {cell.run for cell in (*gone, *new)})
        for cell, counts in new.items():
            state.cells[cell] = state.cells.get(cell, Counts()) + counts
        for cell, counts in gone.items():
            left = state.cells.get(cell, Counts()) - counts
            state.cells[cell] = left
            if not left.records:
                del state.cells[cell]
        if earliest is not None and (state.earliest is None or earliest < state.earliest):
            state.earliest = earliest

    def mark_live(self, session: str, clock: int) -> None:
        """Note that the runs of a session have to be looked at for its transcripts."""
        for name in self._joined.get(session, ()):
            self.runs[name].live_needed = clock

    def put_implied(self, session: str, implied: Attachment | None) -> bool:
        """Note what run a session's rows mean; tells whether that is another one than before."""
        state = self.session(session)
        changed = state.implied != implied
        state.implied = implied
        state.scope_version = self.scope_version
        if implied is not None:
            self._touch_runs(session, {implied.run})
        return changed

    def _touch_runs(self, session: str, names: Iterable[str | None]) -> None:
        for name in names:
            if name is not None and name in self.runs:
                self.runs[name].forget_sums()
                self.join(self.runs[name], session)
                self._on_change(name)

    def measured(self, state: RunAccount) -> Counts:
        """Return the sum of a run's measured usage."""
        if state.measured is None:
            state.measured = sum((counts for _, _, counts in self.cells(state)), Counts())
        return state.measured

    def provisional(self, state: RunAccount) -> tuple[PhaseRecord, ...]:
        """Return the completed phases whose estimates count, because nothing has been measured of them yet."""
        if state.provisional is None:
            state.provisional = self.would_count(state, state.completed)
        return state.provisional

    def balance(self, state: RunAccount, run: Run | None = None) -> Balance:
        """Return where a run (or what it is about to be changed into) stands by the last known numbers."""
        run = run or state.run
        measured = self.measured(state).tokens(run.cost_basis)
        provisional = sum(record.estimate for record in self.provisional(state))
        return budget.balance(run, measured, provisional, state.reserved)

    def minutes(self, state: RunAccount) -> dict[int, int]:
        """Return what a run's present sessions have used for it of late, in tokens of its cost basis, by the minute."""
        found: dict[int, int] = {}
        for name in state.sessions:
            if self.run_of_session(name) is not state:
                continue
            session = self.session(name)
            present = session.current[-1]
            for minute, counts in session.minutes.items():
                # The minute in which the session came is partly another's.
                if present.first or minute > present.since // MINUTE:
                    found[minute] = found.get(minute, 0) + counts.tokens(state.run.cost_basis)
        return found

    def by_phase(self, state: RunAccount) -> dict[str, Counts]:
        """Return a run's measured usage by phase."""
        sums: dict[str, Counts] = {}
        for _, cell, counts in self.cells(state):
            sums[cell.phase] = sums.get(cell.phase, Counts()) + counts
        return sums

    def would_count(self, state: RunAccount, completed: tuple[PhaseRecord, ...]) -> tuple[PhaseRecord, ...]:
        """Return the phases whose estimates count when a run has completed these."""
        if not completed:
            return ()
        measured: set[str] = set()
        working: set[str] = set()
        for name, cell, counts in self.cells(state):
            if counts.total:
                measured.add(cell.phase)
                working.add(name)
        stints = [
            attribution.stint(one, self.session(name).earliest, measured=name in working)
            for name in state.sessions
            for one in self.session(name).current
            if one.run == state.run.id
        ]
        return phases.provisional(completed, measured, stints)

    def cells(self, state: RunAccount) -> Iterator[tuple[str, Cell, Counts]]:
        """Yield a run's sums with the session that each belongs to."""
        for name in sorted(state.sessions):
            for cell, counts in self.session(name).cells.items():
                if cell.run == state.run.id:
                    yield name, cell, counts

    def attachments_to(self, run_id: str) -> list[Attachment]:
        """Return a run's attachments, asked and implied, in the order of time."""
        found = [one for name in self.runs[run_id].sessions for one in self.session(name).current if one.run == run_id]
        return sorted(found, key=lambda one: (one.since, one.session))

    def active(self) -> list[RunAccount]:
        """Return the active runs."""
        return list(self._active.values())

    def followed(self, now: int) -> list[RunAccount]:
        """Return the runs whose sources are read: the active ones, and those that ended within 48 hours."""
        for name in [name for name, state in self._ended.items() if not is_followed(state.run, now)]:
            del self._ended[name]
        return [*self._active.values(), *self._ended.values()]

    def run_of_session(self, session: str) -> RunAccount | None:
        """Return the run that a session belongs to now; None when there is none."""
        known = self.sessions.get(session)
        if known is None or not known.current or known.current[-1].until is not None:
            return None
        return self.runs.get(known.current[-1].run)

    def is_settled(self, session: str, epoch: int) -> bool:
        """Tell whether the run of a session is certain: it was told so, or its rows were looked at in this epoch."""
        known = self.sessions.get(session)
        return known is not None and bool(known.attachments or (known.current and known.epoch == epoch))

    def find(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> RunAccount:
        """Return the run that a request means; raises `NoRunError`.

        An id, a scope or a session that was named decides alone. Else the hints, in their order: `$FLUXBUDGET_RUN`
        decides alone too (unless its run has ended, and the session has gone on to another one); a bead or a session
        that no run knows is passed over; last the only active run whose project directory is the working directory or a
        parent of it. (A sprint whose bead has no run does not get the numbers of another sprint in the same directory:
        with a bead set, that run must have no scope.)
        """
        for value, by, what in (
            (run, self._by_id, "with id"),
            (scope, self._by_scope, "with scope"),
            (session, self.run_of_session, "with session"),
            (hints.run, self._by_id, "with id ($FLUXBUDGET_RUN)"),
        ):
            if value is not None:
                found = by(value)
                if found is None:
                    raise NoRunError(f"there is no run {what} {value!r}", "see 'fluxbudgetctl run list --all'")
                return found if value is not hints.run else self._gone_on(found, hints)
        found = self._by_hints(hints)
        if found is None:
            raise NoRunError(
                "no run was named"
                if hints.cwd is None
                else f"no active run has {hints.cwd} or a parent of it as its project",
                "start one with 'fluxbudgetctl run start', or name one with --run, --scope or --session",
            )
        return found

    def _gone_on(self, found: RunAccount, hints: Hints) -> RunAccount:
        """Return the run of `$FLUXBUDGET_RUN`; when it has ended, the active one that the session has gone on to.

        A session keeps the variable that it was started with.
        """
        if found.run.status == "active":
            return found
        others = (self.run_of_session(name) for name in hints.sessions)
        return next((one for one in others if one is not None and one.run.status == "active"), found)

    def find_if_any(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> RunAccount | None:
        """Return the run that a request means, or None when it names none and no run is there to be meant.

        Raises `NoRunError` for a name that no run has, and for hints that fit several runs: a question whose answer
        depends on the run must not be answered as if there were none.
        """
        if run or scope or session or hints.run:
            return self.find(run, scope, session, hints)
        return self._by_hints(hints)

    def _by_id(self, run_id: str) -> RunAccount | None:
        return self.runs.get(run_id)

    def _by_scope(self, scope: str) -> RunAccount | None:
        runs = self.scopes.get(scope)
        if not runs:
            return None
        active = [run for run in runs if run.status == "active"]
        return self.runs[(active or runs)[-1].id]

    def _by_hints(self, hints: Hints) -> RunAccount | None:
        found = self._by_scope(hints.scope) if hints.scope else None
        for name in hints.sessions:
            found = found or self.run_of_session(name)
        return found or self._by_directory(hints)

    def _by_directory(self, hints: Hints) -> RunAccount | None:
        if hints.cwd is None:
            return None
        above = hints.cwd.rstrip("/") + "/"
        found = [
            state
            for state in self.active()
            if above.startswith(state.run.project_dir.rstrip("/") + "/") and (not hints.scope or not state.run.scope)
        ]
        if len(found) > 1:
            names = ", ".join(sorted(state.run.id for state in found)[:5])
            raise NoRunError(
                f"{len(found)} active runs have {hints.cwd} or a parent of it as their project: {names}",
                "name one with --run, --scope or --session",
            )
        return found[0] if found else None
