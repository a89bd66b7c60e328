"""Claude Code's directories that were learned from hooks."""

from collections.abc import Iterable

from fluxbudgetd.ledger.database import Database


class StoredClaudeDirectories:
    """The learned directories, as text from `wire.text.fold`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[str, ...]:
        """Return the directories."""
        return tuple(path for (path,) in await self._database.rows("SELECT path FROM claude_dirs ORDER BY path"))

    async def replace(self, directories: Iterable[str]) -> None:
        """Store these directories and no others."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.execute("DELETE FROM claude_dirs")
            await transaction.executemany("INSERT INTO claude_dirs VALUES (?)", [(path,) for path in directories])
