"""The ledger's one connection: reads, and transactions that cancellation cannot interrupt.

Two levels of durability, both of which survive `kill -9`:

* What an answer reports as done (runs, attachments, events) is on disk before the answer: `synchronous = FULL`.
* Measured usage can be measured again, so its transactions do not wait for the disk: `synchronous = NORMAL`. A
  power failure may lose the last of them, but never damages the file.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
import anyio
import msgspec

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.model import Event, EventData, EventKind
from fluxbudgetd.wire.messages import By
from fluxbudgetd.wire.text import shown_path

#: An event that has no number yet.
NewEvent = tuple[EventKind, EventData]
#: Called with the events of a transaction once they are on disk, in the order of their numbers.
OnCommitted = Callable[[Sequence[Event]], None]


class Transaction:
    """An open transaction. `events` are those written in it, which must not be visible before the commit."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.events: list[Event] = []
        self._connection = connection

    async def execute(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Execute one statement."""
        await self._connection.execute(sql, parameters)

    async def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute one statement once per row."""
        await self._connection.executemany(sql, rows)

    async def add_events(self, at: int, run: str | None, events: Sequence[NewEvent], by: By | None = None) -> None:
        """Write events that happened at one time (microseconds since the epoch); each gets the next number."""
        cause = None if by is None else msgspec.json.encode(by)
        for kind, data in events:
            cursor = await self._connection.execute(
                "INSERT INTO events(at, run, kind, data, by) VALUES (?,?,?,?,?)",
                (at, run, kind, msgspec.json.encode(data), cause),
            )
            self.events.append(Event(seq=cursor.lastrowid or 0, at=at, run=run, kind=kind, data=data, by=by))
            await cursor.close()


class Database:
    """An open ledger file. Transactions run one at a time, and cancelling a caller does not interrupt one."""

    def __init__(self, connection: aiosqlite.Connection, path: str, on_committed: OnCommitted) -> None:
        self.path = path
        self._connection = connection
        self._on_committed = on_committed
        self._lock = anyio.Lock()
        self._identity = _identity(path)

    @classmethod
    async def prepare(cls, connection: aiosqlite.Connection, path: str, on_committed: OnCommitted) -> "Database":
        """Configure a connection and return its `Database`."""
        await connection.execute("PRAGMA foreign_keys = ON")
        # The daemon's memory is bounded, and the ledger has few hot pages.
        await connection.execute("PRAGMA cache_size = -512")
        return cls(connection, path, on_committed)

    async def close(self) -> None:
        """Finish the current transaction and close the file."""
        async with self._lock:
            await self._connection.close()

    async def rows(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        """Return a query's rows; raises `LedgerError`."""
        try:
            async with self._lock:  # the connection would show the uncommitted rows of a transaction
                return [tuple(row) for row in await self._connection.execute_fetchall(sql, parameters)]
        except (sqlite3.Error, ValueError) as exc:
            raise LedgerError(
                f"the ledger {shown_path(self.path)} cannot be read: {exc}",
                f"stop fluxbudgetd, keep a copy of the ledger, and try 'sqlite3 {shown_path(self.path)} .recover'; "
                "a new ledger loses runs and budgets, not usage",
            ) from exc

    @asynccontextmanager
    async def transaction(self, *, durable: bool) -> AsyncIterator[Transaction]:
        """Commit what the block writes, or nothing of it; raises `LedgerError`.

        `durable`: the commit reaches the disk before this returns.
        """
        async with self._lock:
            transaction = Transaction(self._connection)
            with anyio.CancelScope(shield=True):
                try:
                    self._require_file()
                    await self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    await self._connection.execute("BEGIN IMMEDIATE")
                    try:
                        yield transaction
                        await self._connection.execute("COMMIT")
                    except BaseException:
                        if self._connection.in_transaction:
                            await self._connection.execute("ROLLBACK")
                        raise
                except (sqlite3.Error, ValueError, OverflowError, OSError) as exc:
                    hint = "nothing was changed; check the disk and the permissions"
                    raise LedgerError(f"the ledger {shown_path(self.path)} cannot be written: {exc}", hint) from exc
            if transaction.events:
                self._on_committed(transaction.events)

    def require_file(self) -> None:
        """Raise `LedgerError` if the file is no longer at its path."""
        try:
            self._require_file()
        except OSError as exc:
            raise LedgerError(f"the ledger {shown_path(self.path)} is lost: {exc}", "restart fluxbudgetd") from exc

    def _require_file(self) -> None:
        # SQLite continues to write to a file that was deleted or replaced, and all of that would be lost.
        if _identity(self.path) != self._identity:
            raise OSError("the file was removed or replaced while the daemon was running")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino
