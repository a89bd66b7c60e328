"""Reading `metrics.db`: an epoch that grows with each change, and snapshots of whole sessions.

Two threads use a source. The event loop calls `epoch()`, which never waits. One worker thread at a time calls `read`
and `recent`; a failure there becomes the source's state, never an exception.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from fluxbudgetd.model import (
    AgentSample,
    Counts,
    NewRows,
    Reading,
    RecentUsage,
    RowMark,
    SessionSnapshot,
    SourceState,
    SourceStatus,
)
from fluxbudgetd.sources.databases import fetch, state_of
from fluxbudgetd.sources.interstat import faults, history, rows
from fluxbudgetd.sources.interstat.link import ClosedFile, Link, signature
from fluxbudgetd.sources.values import text, token_counts
from fluxbudgetd.wire.text import shown_path, unfold

#: Unattributed usage is searched for in this many of the newest rows, however large the table is.
RECENT_ROWS = 10_000

# An immutable file may be opened for writing while it is read; then it is read again as a live file.
_ATTEMPTS = 3
_HUNG_SECONDS = 0.05

T = TypeVar("T")


class _FaultError(Exception):
    def __init__(self, state: SourceState, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class InterstatSource:
    """interstat's database at one path, which need not exist. `is_chosen`: the path was configured."""

    def __init__(self, path: str, *, is_chosen: bool = False) -> None:
        self.path = path
        self.is_chosen = is_chosen
        self.status = self._fault("unread", "not read yet")
        self._link: Link | None = None
        # Shows whether the file has changed since `close`. None while it is open, and if that cannot be known.
        self._closed: ClosedFile | None = None
        self._columns: rows.Columns | None = None
        self._working = threading.Lock()  # one worker at a time, even if an abandoned one still hangs
        self._swap = threading.Lock()  # the event loop never waits for it; no link is closed while its `changed` runs
        self._epoch = 0

    def epoch(self) -> int:
        """Return a number that grows whenever a commit may have landed since the last call.

        A snapshot read after `epoch()` returned N includes everything that was committed before that call. It takes
        microseconds: one or two `stat` calls and one `PRAGMA data_version`.
        """
        if self._changed():
            self._epoch += 1
        return self._epoch

    def _changed(self) -> bool:
        if self.status.state == "absent":
            try:
                signature(self.path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError:
                return True
            return True
        if not self.status.is_readable or not self._swap.acquire(blocking=False):
            return True
        try:
            if self._link is not None:
                return self._link.changed()
            return self._closed is None or self._closed.changed()
        finally:
            self._swap.release()

    def read(self, wanted: Mapping[str, int | None], scopes: Iterable[str]) -> Reading:
        """Return the wanted sessions' snapshots, and those of every session with a row that names one of the scopes.

        `wanted` maps each session to its known digest, or to None. Records that have not changed are left out.
        For a worker thread; never raises because of what the file is or contains.
        """

        def snapshots(connection: sqlite3.Connection, columns: rows.Columns) -> Reading:
            by_scope = {scope: _sessions_of(connection, columns, scope) for scope in scopes}
            sessions = dict.fromkeys((name for names in by_scope.values() for name in names), None) | dict(wanted)
            by_session = {name: _snapshot(connection, columns, name, known) for name, known in sessions.items()}
            return Reading(status=self._ok(columns), sessions=by_session, by_scope=by_scope)

        return self._run(snapshots, lambda status: Reading(status=status))

    def recent(self) -> tuple[RecentUsage, ...] | None:
        """Return the newest rows' usage, summed by session and bead; None if the file cannot be read."""

        def sums(connection: sqlite3.Connection, columns: rows.Columns) -> tuple[RecentUsage, ...] | None:
            by_key: dict[tuple[str, str], Counts] = {}
            for session, bead, *tokens in fetch(connection, columns.select_recent, {"count": RECENT_ROWS}):
                counts, _ = token_counts(tokens)
                pending = tokens[0] is None and tokens[1] is None
                key = text(session), text(bead)
                by_key[key] = by_key.get(key, Counts()) + Counts(1, int(pending), *counts)
            return tuple(RecentUsage(*key, counts) for key, counts in by_key.items())

        return self._run(sums, lambda _status: None)

    def samples(self, model: str) -> tuple[AgentSample, ...] | None:
        """Return each agent's sums for a model; None if the file cannot be read. For a worker thread."""

        def sums(connection: sqlite3.Connection, columns: rows.Columns) -> tuple[AgentSample, ...] | None:
            return history.samples(connection, model) if history.has_totals(columns) else ()

        return self._run(sums, lambda _status: None)

    def new_rows(self, mark: RowMark) -> NewRows | None:
        """Return the sub-agents' rows that are new since a mark; None if the file cannot be read."""

        def scan(connection: sqlite3.Connection, columns: rows.Columns) -> NewRows:
            if not history.has_totals(columns):
                return NewRows([], RowMark())
            return history.new_rows(connection, columns, mark)

        return self._run(scan, lambda _status: None)

    def slow(self) -> SourceStatus:
        """Return the status to show while a read is stuck."""
        return self._fault("slow", "a read has been under way for more than a second")

    def _fault(self, state: SourceState, detail: str) -> SourceStatus:
        hint = faults.HINTS.get(state, "")
        return SourceStatus(name=faults.NAME, path=shown_path(self.path), state=state, detail=detail, hint=hint)

    def reopen(self) -> None:
        """Close the file; the next read opens it again. For a worker thread."""
        if self._working.acquire(timeout=_HUNG_SECONDS):
            try:
                self._forget()
            finally:
                self._working.release()

    def close(self) -> None:
        """Close the file until the next read. `epoch` grows when the file changes. For a worker thread."""
        if self._working.acquire(timeout=_HUNG_SECONDS):
            try:
                with self._swap:
                    if self._link is not None:
                        self._closed = self._link.close()
                        self._link = self._columns = None
            finally:
                self._working.release()

    def _run(self, read: Callable[[sqlite3.Connection, rows.Columns], T], otherwise: Callable[[SourceStatus], T]) -> T:
        if not self._working.acquire(timeout=_HUNG_SECONDS):
            return otherwise(self.slow())
        try:
            return self._attempt(read)
        except (sqlite3.Error, OSError, ValueError, _FaultError) as exc:
            state, detail = (exc.state, exc.detail) if isinstance(exc, _FaultError) else state_of(exc)
            if state != "locked":
                self._forget()
            hint = faults.HINTS.get(state, "")
            self.status = SourceStatus(
                name=faults.NAME, path=shown_path(self.path), state=state, detail=detail, hint=hint
            )
            return otherwise(self.status)
        finally:
            self._working.release()

    def _attempt(self, read: Callable[[sqlite3.Connection, rows.Columns], T]) -> T:
        for _ in range(_ATTEMPTS):
            link = self._current_link()
            try:
                result = self._in_one_transaction(link, read)
            except sqlite3.Error:
                if link.immutable and link.was_opened_for_writing():
                    continue  # not damaged: a writer opened it during the read
                raise
            if not (link.immutable and link.was_opened_for_writing()):
                return result
        raise _FaultError("locked", "the file keeps changing while it is read")

    def _in_one_transaction(self, link: Link, read: Callable[[sqlite3.Connection, rows.Columns], T]) -> T:
        connection = link.reader
        connection.execute("BEGIN")
        try:
            columns = self._current_columns(link)
            result = read(connection, columns)
            self._ok(columns)
        finally:
            # COMMIT of a read transaction only releases the snapshot; after an I/O error there is nothing to commit.
            if connection.in_transaction:
                connection.execute("COMMIT")
        return result

    def _current_link(self) -> Link:
        with self._swap:
            if self._link is not None and self._link.must_reopen():
                self._drop()
            if self._link is None:
                link = Link(self.path)
                try:
                    link.settle()
                except BaseException:
                    link.close()
                    raise
                self._link, self._closed = link, None
            return self._link

    def _forget(self) -> None:
        with self._swap:
            self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None
        self._columns = None
        self._closed = None

    def _current_columns(self, link: Link) -> rows.Columns:
        version = link.reader.execute("PRAGMA schema_version").fetchone()[0]
        if self._columns is None or link.schema_version != version:
            self._columns = rows.read_columns(link.reader)
            link.schema_version = version
        columns = self._columns
        if columns is None:
            tables = link.reader.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables == 0:
                raise _FaultError("empty", "the database has no tables")
            raise _FaultError("schema_drift", f"table {rows.TABLE} is missing")
        if columns.drift:
            raise _FaultError("schema_drift", columns.drift)
        return columns

    def _ok(self, columns: rows.Columns) -> SourceStatus:
        status = SourceStatus(name=faults.NAME, path=shown_path(self.path), state="ok", notes=columns.notes)
        self.status = status
        return status


def _sessions_of(connection: sqlite3.Connection, columns: rows.Columns, scope: str) -> tuple[str, ...]:
    if columns.select_scope is None:
        return ()
    fetched = fetch(connection, columns.select_scope, {"id": unfold(scope)})
    return tuple(text(session) for (session,) in fetched)


def _snapshot(
    connection: sqlite3.Connection, columns: rows.Columns, session: str, known: int | None
) -> SessionSnapshot:
    fetched = fetch(connection, columns.select, {"id": unfold(session)})
    digest = rows.digest(fetched)
    if digest == known:
        return SessionSnapshot(digest, None)
    usage, anomalies = rows.records(fetched)
    return SessionSnapshot(digest, usage, anomalies)
