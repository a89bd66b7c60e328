"""Triages as stored."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.model import Triage
from fluxbudgetd.threads import off_loop


class StoredReviews:
    """Triages by id. They never change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def triage(self, name: str) -> Triage | None:
        """Return a triage, or None."""
        rows = await self._database.rows("SELECT triage FROM triages WHERE id = ?", (name,))
        return msgspec.json.decode(rows[0][0], type=Triage) if rows else None

    async def triages(self, run: str | None = None) -> list[Triage]:
        """Return the triages of a run, or all, oldest first."""
        where, parameters = ("", ()) if run is None else ("WHERE run = ?", (run,))
        rows = await self._database.rows(
            f"SELECT triage FROM triages {where} ORDER BY at, id",  # noqa: S608  our own names
            parameters,
        )
        return await off_loop(len(rows), _triages, rows)

    async def of_sessions(self, sessions: Iterable[str], runs: Iterable[str]) -> list[Triage]:
        """Return the triages of these sessions, and those of these runs without a session, oldest first."""
        rows = await self._database.rows(
            "SELECT triage FROM triages WHERE session IN (SELECT value FROM json_each(?))"
            " OR (session IS NULL AND run IN (SELECT value FROM json_each(?))) ORDER BY at, id",
            (msgspec.json.encode(sorted(sessions)).decode(), msgspec.json.encode(sorted(runs)).decode()),
        )
        return await off_loop(len(rows), _triages, rows)

    async def newest(self, session: str, run: str, most: int) -> list[Triage]:
        """Return the newest triages of a session, and of its run without a session, newest first."""
        rows = await self._database.rows(
            "SELECT triage FROM triages WHERE session = ? OR (session IS NULL AND run = ?) ORDER BY at DESC, id DESC"
            " LIMIT ?",
            (session, run, most),
        )
        return await off_loop(len(rows), _triages, rows)

    async def add(self, triage: Triage) -> None:
        """Write a triage in one durable transaction."""
        encoded = msgspec.json.encode(triage)
        async with self._database.transaction(durable=True) as transaction:
            await transaction.execute(
                "INSERT INTO triages(id, run, session, at, triage) VALUES (?,?,?,?,?)",
                (triage.id, triage.run, triage.session, triage.at, encoded),
            )


def _triages(rows: Sequence[Sequence[Any]]) -> list[Triage]:
    return [msgspec.json.decode(triage, type=Triage) for (triage,) in rows]
