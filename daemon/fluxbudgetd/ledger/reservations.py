"""Reservations as stored."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.model import Reservation

_COLUMNS = "id, run, session, agent, tokens, at, agent_id, ended_at, call, parent, resumes, base, seen_at"


class StoredReservations:
    """Reservations by number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Reservation]:
        """Return every reservation, oldest first."""
        rows = await self._database.rows(f"SELECT {_COLUMNS} FROM reservations ORDER BY id")  # noqa: S608  our own names
        return [_reservation(row) for row in rows]

    async def save(self, changed: Sequence[Reservation], gone: Sequence[int] = ()) -> None:
        """Write new or changed reservations and delete those with the numbers in `gone`, in one transaction."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany(
                f"INSERT OR REPLACE INTO reservations({_COLUMNS})"  # noqa: S608  our own names
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [msgspec.structs.astuple(reservation) for reservation in changed],
            )
            await transaction.executemany("DELETE FROM reservations WHERE id = ?", [(number,) for number in gone])


def _reservation(row: Sequence[Any]) -> Reservation:
    # The columns are in the order of the struct's fields.
    return Reservation(**dict(zip(Reservation.__struct_fields__, row, strict=True)))
