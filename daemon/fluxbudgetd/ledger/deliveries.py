"""What has been delivered: each channel's position in the events, and the last warnings that sessions were given."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fluxbudgetd.ledger.database import Database

#: The `agent_id` of a session's main loop.
MAIN = ""


class Receiver(NamedTuple):
    """Who is given warnings: a session's main loop, or one of its sub-agents."""

    session: str
    agent_id: str


class StoredDeliveries:
    """A position is the number of the last event that was delivered, or that did not have to be."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def positions(self, channels: Iterable[str]) -> dict[str, int]:
        """Return each channel's position. A new channel starts after the last event."""
        async with self._database.transaction(durable=True) as transaction:
            await transaction.executemany(
                "INSERT OR IGNORE INTO channels(name, seq)"
                " VALUES (?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0))",
                [(name,) for name in channels],
            )
        return dict(await self._database.rows("SELECT name, seq FROM channels"))

    async def save_position(self, channel: str, position: int) -> None:
        """Write a channel's position."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.execute("UPDATE channels SET seq = ? WHERE name = ?", (position, channel))

    async def warned(self, run: str) -> dict[Receiver, int]:
        """Return, by receiver, the number of the last warning about a run that it was given."""
        rows = await self._database.rows("SELECT session, agent, seq FROM told WHERE run = ?", (run,))
        return {Receiver(session, agent_id): int(seq) for session, agent_id, seq in rows}

    async def save_warned(self, warned: Sequence[tuple[str, Receiver, int]]) -> None:
        """Write the last warnings that were given: run, receiver, number."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany(
                "INSERT OR REPLACE INTO told(run, session, agent, seq) VALUES (?,?,?,?)",
                [(run, *receiver, seq) for run, receiver, seq in warned],
            )
