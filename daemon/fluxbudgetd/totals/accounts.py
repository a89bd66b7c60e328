"""All accounts: the runs, the sessions, which sessions may have usage of which run, and every change to them.

Nothing here waits or reads a file. The invariants that callers rely on:

1. A run's spend is the sum of its sessions' cells that belong to the run and of other programs' dispatches, and nothing
   else.
2. A session's cells come from its transcripts or from interstat's rows, never from both.
3. Cells change only under the tally lock (`Tallier`). Runs, attachments and thresholds change only under the runs lock
   (`decisions`); `Totals.load` is the exception, before the first request.
4. `version` grows with every change to runs, phases or attachments. A tally that was computed off the event loop is
   discarded if `version` changed meanwhile.
5. A session that is joined to a run stays joined, and its account is never dropped.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from fluxbudgetd.model import Attachment, Cell, Counts, PhaseRecord, Run, Timeline, Usage
from fluxbudgetd.policy.runs import is_followed
from fluxbudgetd.totals.account import NEVER, RunAccount, SessionAccount, Sums


class Accounts:
    """The runs, and the sessions that were read. `on_change` is called with the id of a run that may have changed."""

    def __init__(self, on_change: Callable[[str], None] = lambda _run: None) -> None:
        self._on_change = on_change
        self.runs: dict[str, RunAccount] = {}
        self.sessions: dict[str, SessionAccount] = {}
        self.timelines: dict[str, Timeline] = {}
        #: The runs that share a scope, oldest first.
        self.scopes: dict[str, list[Run]] = {}
        self.version = 0
        # Separate indexes, so that finding the active runs does not take longer as the history grows.
        self._active: dict[str, RunAccount] = {}
        self._ended: dict[str, RunAccount] = {}
        self._active_in: dict[str, dict[str, RunAccount]] = {}
        self._joined: dict[str, set[str]] = {}

    def put_run(self, run: Run, started_as: Run | None = None) -> RunAccount:
        """Add a run, or replace it after it has changed."""
        self.version += 1
        account = self.runs.get(run.id)
        if account is None:
            account = self.runs[run.id] = RunAccount(run, started_as or run)
        elif account.run.project_dir != run.project_dir:
            self._leave_directory(account)
        account.run = run
        account.latest = max(account.latest, run.started_at, run.ended_at or 0)
        self.timelines[run.id] = Timeline(run, account.completed)
        # An ended run may become active again: intercore can revive one.
        here, there = (self._active, self._ended) if run.ended_at is None else (self._ended, self._active)
        here[run.id] = account
        there.pop(run.id, None)
        self._index_directory(account)
        if run.scope is not None:
            others = [other for other in self.scopes.get(run.scope, []) if other.id != run.id]
            self.scopes[run.scope] = sorted([*others, run], key=lambda each: (each.started_at, each.id))
        self._on_change(run.id)
        return account

    def put_phases(self, run_id: str, completed: tuple[PhaseRecord, ...]) -> None:
        """Replace the phases that a run has completed."""
        self.version += 1
        account = self.runs[run_id]
        account.completed = completed
        account.latest = max([account.latest, *(record.until for record in completed)])
        account.clear_cache()
        self.timelines[run_id] = Timeline(account.run, completed)
        self._on_change(run_id)

    def put_dispatches(self, run_id: str, records: tuple[Usage, ...]) -> None:
        """Replace the usage of other programs that intercore has recorded for a run."""
        account = self.runs[run_id]
        account.dispatches = records
        account.clear_cache()
        self._on_change(run_id)

    def put_reserved(self, run_id: str, tokens: int) -> None:
        """Set how many tokens a run's admitted sub-agents are expected to cost."""
        account = self.runs[run_id]
        if account.reserved != tokens:
            account.reserved = tokens
            self._on_change(run_id)

    def put_attachments(self, attachments: Iterable[Attachment]) -> None:
        """Add attachments, or replace those that begin at the same time."""
        self.version += 1
        for attachment in attachments:
            session = self.session(attachment.session)
            before = session.attachments
            kept = [other for other in before if other.since != attachment.since]
            session.attachments = sorted([*kept, attachment], key=lambda each: each.since)
            # The run that the session leaves has changed, too.
            for run in {attachment.run, *(other.run for other in before)}.intersection(self.runs):
                self._on_change(run)
            account = self.runs.get(attachment.run)
            if account is not None:
                account.latest = max(account.latest, attachment.since, attachment.until or 0)
                # The session's rows may be older than the run's stamp says.
                self.join(account, attachment.session)
                account.shown = account.shown._replace(rows=NEVER)
                account.clear_cache()

    def put_implied(self, name: str, implied: Attachment | None) -> bool:
        """Set the attachment that a session's rows imply. Return True if it changed."""
        session = self.session(name)
        has_changed = session.implied != implied
        session.implied = implied
        if implied is not None:
            self._change_runs(name, {implied.run})
        return has_changed

    def put_cells(self, name: str, cells: Mapping[Cell, Counts], earliest: int | None) -> None:
        """Replace the sums of a session's usage."""
        session = self.session(name)
        self._change_runs(name, {cell.run for cell in (*session.cells, *cells)})
        session.cells = dict(cells)
        session.earliest = earliest

    def shift_cells(
        self, name: str, gone: Mapping[Cell, Counts], new: Mapping[Cell, Counts], earliest: int | None
    ) -> None:
        """Subtract what no longer counts from a session's sums, and add what now counts."""
        session = self.session(name)
        self._change_runs(name, {cell.run for cell in (*gone, *new)})
        for cell, counts in new.items():
            session.cells[cell] = session.cells.get(cell, Counts()) + counts
        for cell, counts in gone.items():
            left = session.cells.get(cell, Counts()) - counts
            session.cells[cell] = left
            if not left.records:
                del session.cells[cell]
        if earliest is not None and (session.earliest is None or earliest < session.earliest):
            session.earliest = earliest

    def distrust_sums(self) -> None:
        """Have all sessions summed again, because the ledger could not say which of them have usage of a run."""
        for session in self.sessions.values():
            if session.sums is not Sums.UNKNOWN:
                session.sums = Sums.UNREADABLE

    def session(self, name: str) -> SessionAccount:
        """Return a session's account; add an empty one if there is none."""
        session = self.sessions.get(name)
        if session is None:
            session = self.sessions[name] = SessionAccount()
        return session

    def note_active(self, name: str, now: int) -> None:
        """Record that a session of a run has had a response, if that was not known yet."""
        session = self.sessions.get(name)
        if session is not None and session.active_since is None:
            session.active_since = now

    def join(self, account: RunAccount, name: str) -> None:
        """Record that a session may have usage of a run."""
        account.sessions[name] = self.session(name)
        self._joined.setdefault(name, set()).add(account.run.id)

    def runs_joined_by(self, name: str) -> Collection[str]:
        """Return the ids of the runs that a session may have usage of."""
        return self._joined.get(name, ())

    def is_followed(self, name: str) -> bool:
        """Return True if a session belongs to a run, or may have usage of one."""
        session = self.sessions.get(name)
        return (session is not None and session.is_followed) or name in self._joined

    def in_reading_order(self, names: Iterable[str]) -> list[str]:
        """Return sessions by their first attachment, then by name: a response belongs to the first that has it."""

        def order(name: str) -> tuple[float, str]:
            session = self.sessions.get(name)
            current = () if session is None else session.current
            return (current[0].since if current else math.inf), name

        return sorted(names, key=order)

    def forget_unknown(self, name: str) -> bool:
        """Drop a session's account and return True if it has nothing to do with any run; otherwise return False."""
        if self.is_followed(name):
            return False
        self.sessions.pop(name, None)
        return True

    def run_of_scope(self, scope: str) -> RunAccount | None:
        """Return the run that a scope means now: the newest active one that has it, otherwise the newest."""
        runs = self.scopes.get(scope)
        if not runs:
            return None
        active = [run for run in runs if run.status == "active"]
        return self.runs[(active or runs)[-1].id]

    def has_scope(self, run: Run) -> bool:
        """Return True if the run's scope means this run, and not a newer one with the same scope."""
        account = None if run.scope is None else self.run_of_scope(run.scope)
        return account is not None and account.run.id == run.id

    def active(self) -> list[RunAccount]:
        """Return the active runs."""
        return list(self._active.values())

    def active_in(self, directory: str) -> list[RunAccount]:
        """Return the active runs whose project is exactly this directory, by id."""
        found = self._active_in.get(directory)
        return [] if found is None else [found[name] for name in sorted(found)]

    def shared_directories(self) -> list[str]:
        """Return the directories that are the project of several active runs, in order."""
        return sorted(directory for directory, found in self._active_in.items() if len(found) > 1)

    def has_active(self) -> bool:
        """Return True if a run is active. May be called in any thread."""
        return bool(self._active)

    def followed(self, now: int) -> list[RunAccount]:
        """Return the runs whose sources are read: the active ones, and those that ended within 48 hours."""
        for name in [name for name, account in self._ended.items() if not is_followed(account.run, now)]:
            del self._ended[name]
        return [*self._active.values(), *self._ended.values()]

    def run_of_session(self, name: str) -> RunAccount | None:
        """Return the run that a session belongs to now; None if it belongs to none."""
        session = self.sessions.get(name)
        run = None if session is None else session.run
        return None if run is None else self.runs.get(run)

    def _index_directory(self, account: RunAccount) -> None:
        if account.run.ended_at is None:
            self._active_in.setdefault(_directory_of(account.run), {})[account.run.id] = account
        else:
            self._leave_directory(account)

    def _leave_directory(self, account: RunAccount) -> None:
        directory = _directory_of(account.run)
        here = self._active_in.get(directory, {})
        here.pop(account.run.id, None)
        if not here:
            self._active_in.pop(directory, None)

    def _change_runs(self, name: str, runs: Iterable[str | None]) -> None:
        for run in runs:
            account = None if run is None else self.runs.get(run)
            if account is not None:
                account.clear_cache()
                self.join(account, name)
                self._on_change(account.run.id)


def _directory_of(run: Run) -> str:
    return run.project_dir.rstrip("/") or "/"
