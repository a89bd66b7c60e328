"""The last measured usage of each session, by source."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.model import Usage
from fluxbudgetd.threads import off_loop

_COLUMNS = "key, at, agent, model, bead, phase, pending, input, output, cache_read, cache_creation"


class UsageChanges(msgspec.Struct, frozen=True):
    """The difference between two snapshots of a session's usage: the keys to delete, the new or changed records."""

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


class StoredUsage:
    """Usage records by session and source."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_session(self, session: str, source: str) -> tuple[Usage, ...]:
        """Return a session's usage from one source."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM usage WHERE session = ? AND source = ?",  # noqa: S608  our own names
            (session, source),
        )
        return await off_loop(len(rows), _usages, rows)

    async def of_runs(self) -> dict[str, tuple[Usage, ...]]:
        """Return, by run, the other programs' dispatches that intercore has recorded."""
        rows = await self._database.rows(
            f"SELECT session, {_COLUMNS} FROM usage WHERE source = 'intercore' ORDER BY session"  # noqa: S608  our own names
        )
        by_run: dict[str, list[Usage]] = {}
        for run, *row in rows:
            by_run.setdefault(run, []).append(_usage(row))
        return {run: tuple(records) for run, records in by_run.items()}

    async def sessions_naming(self, scope: str) -> list[str]:
        """Return the sessions with a usage record that names a scope."""
        rows = await self._database.rows("SELECT DISTINCT session FROM usage WHERE bead = ? AND bead <> ''", (scope,))
        return [session for (session,) in rows]

    async def save(self, source: str, changes: Sequence[tuple[str, UsageChanges]]) -> None:
        """Bring the usage of sessions up to date, all in one transaction."""
        gone = [(session, source, key) for session, change in changes for key in change.gone]
        new: list[tuple[object, ...]] = []
        for session, change in changes:
            new += await off_loop(len(change.new), change.rows, session, source)
        if not gone and not new:
            return
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany("DELETE FROM usage WHERE session = ? AND source = ? AND key = ?", gone)
            await transaction.executemany(
                f"INSERT OR REPLACE INTO usage(session, source, {_COLUMNS})"  # noqa: S608  our own names
                f" VALUES ({', '.join('?' * 13)})",
                new,
            )


def _usages(rows: Sequence[Sequence[Any]]) -> tuple[Usage, ...]:
    return tuple(map(_usage, rows))


def _usage(row: Sequence[Any]) -> Usage:
    # The columns are in the order of the struct's fields.
    key, at, agent, model, bead, phase, pending, *tokens = row
    input_, output, cache_read, cache_creation = tokens
    return Usage(key, at, agent, model, bead, phase, bool(pending), input_, output, cache_read, cache_creation)
