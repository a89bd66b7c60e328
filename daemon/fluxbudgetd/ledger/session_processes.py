"""The processes in which sessions run, so that a restart of the daemon does not forget them."""

from collections.abc import Collection, Sequence

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.model import SessionProcess


class StoredSessionProcesses:
    """One row for each process and session."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[SessionProcess]:
        """Return every stored process, including those that have ended, the longest known first."""
        rows = await self._database.rows("SELECT pid, started, session FROM session_processes ORDER BY rowid")
        return [SessionProcess(*row) for row in rows]

    async def replace(self, ended: Collection[int], new: Sequence[SessionProcess]) -> None:
        """Remove the rows of processes that have ended, and add new ones."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany("DELETE FROM session_processes WHERE pid = ?", [(pid,) for pid in ended])
            await transaction.executemany(
                "INSERT OR IGNORE INTO session_processes(pid, started, session) VALUES (?,?,?)", new
            )
