"""Transcripts as stored: how far each file has been read, and the responses found so far."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.model import Copy, TranscriptFile
from fluxbudgetd.threads import off_loop


class TranscriptChanges(msgspec.Struct, frozen=True):
    """What a reading changed: the copies to delete (message, key), new or changed copies, and the files' positions."""

    session: str
    gone: tuple[tuple[int, int], ...]
    new: tuple[Copy, ...]
    files: tuple[TranscriptFile, ...]


class StoredTranscripts:
    """Positions and responses by session; the two always agree."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sessions(self) -> list[str]:
        """Return the sessions whose transcripts have been read."""
        return [session for (session,) in await self._database.rows("SELECT DISTINCT session FROM transcripts")]

    async def files(self, session: str) -> tuple[TranscriptFile, ...]:
        """Return a session's files, and how far each has been read."""
        rows = await self._database.rows(
            "SELECT number, path, dev, ino, offset, mark, agent, skipped, anomalies FROM transcripts "
            "WHERE session = ? ORDER BY number",
            (session,),
        )
        return tuple(
            TranscriptFile(number, path, _unsigned(dev), _unsigned(ino), *rest)
            for number, path, dev, ino, *rest in rows
        )

    async def responses(self, session: str) -> tuple[Copy, ...]:
        """Return the responses found in a session's files."""
        rows = await self._database.rows(
            "SELECT message, key, sidechain, file, at, agent, model, input, output, cache_read, cache_creation "
            "FROM responses WHERE session = ?",
            (session,),
        )
        return await off_loop(len(rows), _copies, rows)

    async def first_responses(self, session: str) -> dict[int, int | None]:
        """Return, by file number, the time of the file's first response."""
        rows = await self._database.rows(
            "SELECT file, min(at) FROM responses WHERE session = ? GROUP BY file", (session,)
        )
        return dict(rows)

    async def save(self, changes: Sequence[TranscriptChanges]) -> None:
        """Bring sessions' responses and positions up to date, all in one transaction."""
        gone = [(change.session, *key) for change in changes for key in change.gone]
        new: list[tuple[object, ...]] = []
        for change in changes:
            new += await off_loop(len(change.new), _response_rows, change)
        files = [_file_row(change.session, file) for change in changes for file in change.files]
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany("DELETE FROM responses WHERE session = ? AND message = ? AND key = ?", gone)
            await transaction.executemany("INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", new)
            await transaction.executemany("INSERT OR REPLACE INTO transcripts VALUES (?,?,?,?,?,?,?,?,?,?)", files)


def _file_row(session: str, file: TranscriptFile) -> tuple[object, ...]:
    number, path, dev, ino, *rest = msgspec.structs.astuple(file)
    return (session, number, path, _signed(dev), _signed(ino), *rest)


def _signed(number: int) -> int:
    """Return an unsigned 64-bit number as the signed one that SQLite can store."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def _copies(rows: Sequence[Sequence[Any]]) -> tuple[Copy, ...]:
    return tuple(Copy(message, key, bool(sidechain), *rest) for message, key, sidechain, *rest in rows)


def _response_rows(changes: TranscriptChanges) -> list[tuple[object, ...]]:
    return [(changes.session, *msgspec.structs.astuple(copy)) for copy in changes.new]
