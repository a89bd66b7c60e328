"""Reading and writing the ledger.

Two grades of durability, both proof against `kill -9`:

* what somebody is told has happened (runs, attachments, events) is on disk before they are told: `synchronous = FULL`;
* measured usage can be measured again, so its transactions are not waited for: `synchronous = NORMAL`. A power cut may
  take the last of them, never the file.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
import anyio
import msgspec

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.model import (
    Attachment,
    Copy,
    Event,
    EventData,
    EventKind,
    Mark,
    PhaseRecord,
    Reservation,
    Run,
    TranscriptFile,
    Triage,
    Usage,
)
from fluxbudgetd.threads import off_loop
from fluxbudgetd.wire.text import shown_path

#: An event that has no number yet.
NewEvent = tuple[EventKind, EventData]

_USAGE_COLUMNS = "key, at, agent, model, bead, phase, pending, input, output, cache_read, cache_creation"
_RESERVATION_COLUMNS = "id, run, session, agent, tokens, at, agent_id, ended_at, call"


class UsageChanges(msgspec.Struct, frozen=True):
    """What turns one snapshot of a session's usage into another: keys that went, records that came or changed."""

    gone: tuple[int, ...]
    new: tuple[Usage, ...]

    @classmethod
    def between(cls, before: Iterable[Usage], after: Iterable[Usage]) -> "UsageChanges":
        """Return the changes from one snapshot to the next."""
        old = {record.key: record for record in before}
        new = {record.key: record for record in after}
        changed = tuple(record for key, record in new.items() if old.get(key) != record)
        return cls(gone=tuple(old.keys() - new.keys()), new=changed)

    def rows(self, session: str, source: str) -> list[tuple[object, ...]]:
        """Return the new records as rows of the table."""
        return [(session, source, *msgspec.structs.astuple(record)) for record in self.new]


class TranscriptChanges(msgspec.Struct, frozen=True):
    """What has come of a session's transcripts: copies that went (message, key), and came, and the files' positions."""

    session: str
    gone: tuple[tuple[int, int], ...]
    new: tuple[Copy, ...]
    files: tuple[TranscriptFile, ...]


class Ledger:
    """An open ledger. Transactions are serialised, and once begun they are finished even when the asker goes away."""

    def __init__(self, connection: aiosqlite.Connection, path: str) -> None:
        self.path = path
        # Called with the events of each transaction as soon as they are on disk, in the order of their numbers.
        self.committed: Callable[[Sequence[Event]], None] | None = None
        self._connection = connection
        self._lock = anyio.Lock()
        self._uncommitted: list[Event] = []
        self._identity = _identity(path)

    @classmethod
    async def over(cls, connection: aiosqlite.Connection, path: str) -> "Ledger":
        """Return a ledger over a connection to a file that `open_ledger` has prepared."""
        await connection.execute("PRAGMA foreign_keys = ON")
        # The daemon's memory is bounded; the ledger's hot pages are few.
        await connection.execute("PRAGMA cache_size = -512")
        return cls(connection, path)

    async def close(self) -> None:
        """Finish the transaction under way and close the file."""
        async with self._lock:
            await self._connection.close()

    async def runs(self) -> list[tuple[Run, Run]]:
        """Return every run as it is and as it was started, oldest first."""
        rows = await self._rows("SELECT run, started_as FROM runs ORDER BY started_at, id")
        return [(_decode_run(now_is), _decode_run(was)) for now_is, was in rows]

    async def attachments(self) -> list[Attachment]:
        """Return every attachment, each session's in the order of time."""
        rows = await self._rows("SELECT session, run, since, until, first, origin FROM attachments")
        return [
            Attachment(session=session, run=run, since=since, until=until, first=bool(first), origin=origin)
            for session, run, since, until, first, origin in rows
        ]

    async def usage(self, session: str, source: str) -> tuple[Usage, ...]:
        """Return a session's last measured usage as a source gave it."""
        rows = await self._rows(
            f"SELECT {_USAGE_COLUMNS} FROM usage WHERE session = ? AND source = ?",  # noqa: S608  our own names
            (session, source),
        )
        return await off_loop(len(rows), _usages, rows)

    async def transcript_sessions(self) -> list[str]:
        """Return the sessions whose transcripts have been read."""
        return [session for (session,) in await self._rows("SELECT DISTINCT session FROM transcripts")]

    async def transcript_files(self, session: str) -> tuple[TranscriptFile, ...]:
        """Return how far a session's transcripts have been read."""
        rows = await self._rows(
            "SELECT number, path, dev, ino, offset, mark, agent, skipped, anomalies FROM transcripts "
            "WHERE session = ? ORDER BY number",
            (session,),
        )
        return tuple(
            TranscriptFile(number, path, _unsigned(dev), _unsigned(ino), *rest)
            for number, path, dev, ino, *rest in rows
        )

    async def responses(self, session: str) -> tuple[Copy, ...]:
        """Return the responses that a session's transcripts have given."""
        rows = await self._rows(
            "SELECT message, key, sidechain, file, at, agent, model, input, output, cache_read, cache_creation "
            "FROM responses WHERE session = ?",
            (session,),
        )
        return await off_loop(len(rows), _copies, rows)

    async def sessions_naming(self, scope: str) -> list[str]:
        """Return the sessions whose last measured usage names a scope."""
        rows = await self._rows("SELECT DISTINCT session FROM usage WHERE bead = ? AND bead <> ''", (scope,))
        return [session for (session,) in rows]

    async def last_source_events(self) -> dict[str, EventKind]:
        """Return, per source, whether its latest event says that it has degraded or recovered."""
        kinds = ("source.degraded", "source.recovered")
        rows = await self._rows("SELECT kind, data FROM events WHERE kind IN (?, ?) ORDER BY seq DESC LIMIT 100", kinds)
        latest: dict[str, EventKind] = {}
        for kind, data in rows:
            latest.setdefault(str(_decode_data(data)["source"]), kind)
        return latest

    async def events(self, after: int, limit: int) -> list[Event]:
        """Return the first events behind a sequence number."""
        rows = await self._rows(
            "SELECT seq, at, run, kind, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return list(map(_event, rows))

    async def last_event(self) -> int:
        """Return the last event's sequence number; when nothing has happened yet, the one before the first."""
        rows = await self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0][0]) if rows else 0

    async def last_warnings(self, run: str) -> list[Event]:
        """Return the last event of each kind and percentage that was told of a run's budget, in their order."""
        rows = await self._rows(
            "SELECT seq, at, run, kind, data FROM events WHERE run = ?"
            " AND kind IN ('budget.threshold', 'budget.warning', 'budget.exceeded') ORDER BY seq",
            (run,),
        )
        latest = {(event.kind, event.data.get("threshold")): event for event in map(_event, rows)}
        return sorted(latest.values(), key=lambda event: event.seq)

    async def channel_places(self, names: Iterable[str]) -> dict[str, int]:
        """Return, by channel, the number of the last event that it is done with.

        A channel that is new begins with what happens from now on.
        """
        async with self._transaction(durable=True):
            await self._connection.executemany(
                "INSERT OR IGNORE INTO channels(name, seq)"
                " VALUES (?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0))",
                [(name,) for name in names],
            )
        return dict(await self._rows("SELECT name, seq FROM channels"))

    async def save_channel_place(self, name: str, seq: int) -> None:
        """Write down that a channel is done with the events up to this one."""
        async with self._transaction(durable=False):
            await self._connection.execute("UPDATE channels SET seq = ? WHERE name = ?", (seq, name))

    async def told(self, run: str) -> dict[str, int]:
        """Return, by session, the number of the last warning that it was told of a run."""
        rows = await self._rows("SELECT session, seq FROM told WHERE run = ?", (run,))
        return {session: int(seq) for session, seq in rows}

    async def save_told(self, told: Sequence[tuple[str, str, int]]) -> None:
        """Write down what sessions were told: session, run, number."""
        async with self._transaction(durable=False):
            await self._connection.executemany("INSERT OR REPLACE INTO told(session, run, seq) VALUES (?,?,?)", told)

    async def reservations(self) -> list[Reservation]:
        """Return every reservation that is kept, in the order in which they were made."""
        rows = await self._rows(
            f"SELECT {_RESERVATION_COLUMNS} FROM reservations ORDER BY id"  # noqa: S608  our own names
        )
        return [_reservation(row) for row in rows]

    async def save_reservations(self, changed: Sequence[Reservation], gone: Sequence[int] = ()) -> None:
        """Write reservations, new or changed, and drop those with these ids."""
        async with self._transaction(durable=False):
            await self._connection.executemany(
                f"INSERT OR REPLACE INTO reservations({_RESERVATION_COLUMNS})"  # noqa: S608  our own names
                " VALUES (?,?,?,?,?,?,?,?,?)",
                [msgspec.structs.astuple(one) for one in changed],
            )
            await self._connection.executemany("DELETE FROM reservations WHERE id = ?", [(id_,) for id_ in gone])

    async def files_with_usage(self, session: str) -> dict[int, int | None]:
        """Return, by transcript (its number), the time of its first response."""
        rows = await self._rows("SELECT file, min(at) FROM responses WHERE session = ? GROUP BY file", (session,))
        return dict(rows)

    async def phases(self) -> dict[str, list[PhaseRecord]]:
        """Return, by run, the phases that it has completed, in the order of time."""
        found: dict[str, list[PhaseRecord]] = {}
        for run, record in await self._rows("SELECT run, record FROM phases ORDER BY run, number"):
            found.setdefault(run, []).append(msgspec.json.decode(record, type=PhaseRecord))
        return found

    async def thresholds(self) -> dict[str, frozenset[Mark]]:
        """Return, by run, what has been told for its present budget."""
        found: dict[str, set[Mark]] = {}
        for run, kind, pct in await self._rows("SELECT run, kind, pct FROM thresholds"):
            found.setdefault(run, set()).add(Mark(kind, pct))
        return {run: frozenset(fired) for run, fired in found.items()}

    async def triage(self, name: str) -> Triage | None:
        """Return a triage, or None."""
        rows = await self._rows("SELECT triage FROM triages WHERE id = ?", (name,))
        return msgspec.json.decode(rows[0][0], type=Triage) if rows else None

    async def triages(self, run: str | None = None) -> list[Triage]:
        """Return the triages of a run, or all, in the order of time."""
        where, parameters = ("", ()) if run is None else ("WHERE run = ?", (run,))
        rows = await self._rows(f"SELECT triage FROM triages {where} ORDER BY at, id", parameters)  # noqa: S608  our own
        return await off_loop(len(rows), _triages, rows)

    async def save_triage(self, triage: Triage) -> None:
        """Write a triage, whole, in one durable transaction."""
        encoded = msgspec.json.encode(triage)
        async with self._transaction(durable=True):
            await self._connection.execute(
                "INSERT INTO triages(id, run, session, at, triage) VALUES (?,?,?,?,?)",
                (triage.id, triage.run, triage.session, triage.at, encoded),
            )

    async def save_usage(self, source: str, changes: Sequence[tuple[str, UsageChanges]]) -> None:
        """Bring sessions' usage up to date, all in one transaction."""
        gone = [(session, source, key) for session, change in changes for key in change.gone]
        new: list[tuple[object, ...]] = []
        for session, change in changes:
            new += await off_loop(len(change.new), change.rows, session, source)
        if not gone and not new:
            return
        async with self._transaction(durable=False):
            await self._connection.executemany("DELETE FROM usage WHERE session = ? AND source = ? AND key = ?", gone)
            await self._connection.executemany(
                f"INSERT OR REPLACE INTO usage(session, source, {_USAGE_COLUMNS})"  # noqa: S608  our own names
                f" VALUES ({', '.join('?' * 13)})",
                new,
            )

    async def save_transcripts(self, changes: Sequence[TranscriptChanges]) -> None:
        """Bring sessions' responses and positions up to date, all in one transaction: never one without the other."""
        gone = [(one.session, *key) for one in changes for key in one.gone]
        new: list[tuple[object, ...]] = []
        for one in changes:
            new += await off_loop(len(one.new), _response_rows, one)
        files = [_file_row(one.session, file) for one in changes for file in one.files]
        async with self._transaction(durable=False):
            await self._connection.executemany(
                "DELETE FROM responses WHERE session = ? AND message = ? AND key = ?", gone
            )
            await self._connection.executemany(
                "INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                new,
            )
            await self._connection.executemany(
                "INSERT OR REPLACE INTO transcripts VALUES (?,?,?,?,?,?,?,?,?,?)",
                files,
            )

    async def start_run(
        self, run: Run, *, attachments: Sequence[Attachment], events: Sequence[NewEvent], at: int
    ) -> None:
        """Write a new run, attachments and events in one durable transaction."""
        encoded = msgspec.json.encode(run)
        async with self._transaction(durable=True):
            await self._connection.execute(
                "INSERT INTO runs(id, scope, status, started_at, ended_at, run, started_as) VALUES (?,?,?,?,?,?,?)",
                (run.id, run.scope, run.status, run.started_at, run.ended_at, encoded, encoded),
            )
            await self._put_attachments(attachments)
            await self._put_events(at, run.id, events)

    async def save_run(
        self,
        run: Run,
        *,
        completed: tuple[int, PhaseRecord] | None = None,
        fired: frozenset[Mark] | None = None,
        events: Sequence[NewEvent],
        at: int,
    ) -> None:
        """Write a changed run, with the events that tell of it, in one durable transaction.

        `completed` is the number and record of a phase that it has just left, `fired` the thresholds that are told now.
        """
        async with self._transaction(durable=True):
            await self._connection.execute(
                "UPDATE runs SET status = ?, ended_at = ?, run = ? WHERE id = ?",
                (run.status, run.ended_at, msgspec.json.encode(run), run.id),
            )
            if completed is not None:
                number, record = completed
                await self._connection.execute(
                    "INSERT INTO phases(run, number, record) VALUES (?,?,?)",
                    (run.id, number, msgspec.json.encode(record)),
                )
            if fired is not None:
                await self._connection.execute("DELETE FROM thresholds WHERE run = ?", (run.id,))
                await self._connection.executemany(
                    "INSERT INTO thresholds(run, kind, pct) VALUES (?,?,?)", [(run.id, *mark) for mark in sorted(fired)]
                )
            await self._put_events(at, run.id, events)

    async def save_events(self, events: Sequence[tuple[int, str, NewEvent]]) -> None:
        """Write events (each with its time and run) in one durable transaction."""
        async with self._transaction(durable=True):
            for at, run, event in events:
                await self._put_events(at, run, [event])

    async def save_attachments(self, attachments: Sequence[Attachment], run: str, data: EventData, at: int) -> None:
        """Write attachments and the run's `run.changed` event in one durable transaction."""
        async with self._transaction(durable=True):
            await self._put_attachments(attachments)
            await self._put_events(at, run, [("run.changed", data)])

    async def save_source_event(self, kind: EventKind, data: EventData, at: int) -> None:
        """Write that a source has degraded or recovered."""
        async with self._transaction(durable=True):
            await self._put_events(at, None, [(kind, data)])

    async def _put_attachments(self, attachments: Sequence[Attachment]) -> None:
        for one in attachments:
            await self._connection.execute(
                "INSERT OR REPLACE INTO attachments(session, since, until, run, first, origin) VALUES (?,?,?,?,?,?)",
                (one.session, one.since, one.until, one.run, one.first, one.origin),
            )

    async def _put_events(self, at: int, run: str | None, events: Sequence[NewEvent]) -> None:
        for kind, data in events:
            cursor = await self._connection.execute(
                "INSERT INTO events(at, run, kind, data) VALUES (?,?,?,?)", (at, run, kind, msgspec.json.encode(data))
            )
            self._uncommitted.append(Event(seq=cursor.lastrowid or 0, at=at, run=run, kind=kind, data=data))
            await cursor.close()

    async def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            async with self._lock:  # not in the middle of a transaction, which is on the same connection
                return [tuple(row) for row in await self._connection.execute_fetchall(sql, parameters)]
        except (sqlite3.Error, ValueError) as exc:
            raise LedgerError(
                f"the ledger {shown_path(self.path)} cannot be read: {exc}",
                "stop fluxbudgetd, move the ledger away, start it again: usage is measured anew",
            ) from exc

    @asynccontextmanager
    async def _transaction(self, *, durable: bool) -> AsyncIterator[None]:
        async with self._lock:
            with anyio.CancelScope(shield=True):
                try:
                    self._require_file()
                    await self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    await self._connection.execute("BEGIN IMMEDIATE")
                    try:
                        yield
                        await self._connection.execute("COMMIT")
                    except BaseException:
                        self._uncommitted.clear()
                        if self._connection.in_transaction:
                            await self._connection.execute("ROLLBACK")
                        raise
                except (sqlite3.Error, ValueError, OverflowError, OSError) as exc:
                    hint = "nothing was changed; check the disk and the permissions"
                    raise LedgerError(f"the ledger {shown_path(self.path)} cannot be written: {exc}", hint) from exc
                committed, self._uncommitted = self._uncommitted, []
                if committed and self.committed is not None:
                    self.committed(committed)

    def _require_file(self) -> None:
        # SQLite goes on writing to a file that was deleted or replaced under it; nothing of that would be found again.
        if _identity(self.path) != self._identity:
            raise OSError("the file was removed or replaced while the daemon was running; restart fluxbudgetd")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _decode_data(encoded: bytes) -> EventData:
    return msgspec.json.decode(encoded, type=EventData)


def _event(row: Sequence[Any]) -> Event:
    seq, at, run, kind, encoded = row
    try:
        data = _decode_data(encoded)
    except (msgspec.DecodeError, TypeError):  # a byte has turned over: that it has happened is still known
        data = {}
    return Event(seq=seq, at=at, run=run, kind=kind, data=data)


def _reservation(row: Sequence[Any]) -> Reservation:
    # The columns stand in the order of the struct's fields.
    return Reservation(**dict(zip(Reservation.__struct_fields__, row, strict=True)))


def _decode_run(encoded: bytes) -> Run:
    return msgspec.json.decode(encoded, type=Run)


def _triages(rows: Sequence[Sequence[Any]]) -> list[Triage]:
    return [msgspec.json.decode(triage, type=Triage) for (triage,) in rows]


def _file_row(session: str, file: TranscriptFile) -> tuple[object, ...]:
    number, path, dev, ino, *rest = msgspec.structs.astuple(file)
    return (session, number, path, _signed(dev), _signed(ino), *rest)


def _signed(number: int) -> int:
    """Return an unsigned 64-bit number as SQLite can hold it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def _copies(rows: Sequence[Sequence[Any]]) -> tuple[Copy, ...]:
    return tuple(Copy(message, key, bool(sidechain), *rest) for message, key, sidechain, *rest in rows)


def _response_rows(changes: TranscriptChanges) -> list[tuple[object, ...]]:
    return [(changes.session, *msgspec.structs.astuple(copy)) for copy in changes.new]


def _usages(rows: Sequence[Sequence[Any]]) -> tuple[Usage, ...]:
    return tuple(map(_usage, rows))


def _usage(row: Sequence[Any]) -> Usage:
    # The columns stand in the order of the struct's fields.
    key, at, agent, model, bead, phase, pending, *tokens = row
    input_, output, cache_read, cache_creation = tokens
    return Usage(key, at, agent, model, bead, phase, bool(pending), input_, output, cache_read, cache_creation)
