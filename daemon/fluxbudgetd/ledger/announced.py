"""What people have been told once."""

from fluxbudgetd.ledger.database import Database


class StoredAnnouncements:
    """The last value that was announced under each name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last(self, name: str) -> str | None:
        """Return what was announced last, or None."""
        rows = await self._database.rows("SELECT value FROM announced WHERE name = ?", (name,))
        return None if not rows else str(rows[0][0])

    async def add(self, name: str, value: str) -> None:
        """Store what is announced."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.execute("INSERT OR REPLACE INTO announced VALUES (?, ?)", (name, value))
