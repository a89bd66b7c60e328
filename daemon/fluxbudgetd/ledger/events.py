"""Events as stored, in the order of their numbers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fluxbudgetd.ledger.database import Database, NewEvent
from fluxbudgetd.model import Event, EventData, EventKind
from fluxbudgetd.wire.messages import By

_COLUMNS = "seq, at, run, kind, data, by"


class StoredEvents:
    """Events are only added, except that the count of a refusal grows.

    Those of a change to a run are written with it, by `StoredRuns`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, number: int, limit: int) -> list[Event]:
        """Return the first events after a sequence number."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?",  # noqa: S608  our own names
            (number, limit),
        )
        return list(map(_event, rows))

    async def last_number(self) -> int:
        """Return the last event's sequence number; before the first event, the number before its own."""
        rows = await self._database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0][0]) if rows else 0

    async def last_of(self, run: str) -> Event | None:
        """Return a run's last event, None if it has none."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM events WHERE run = ? ORDER BY seq DESC LIMIT 1",  # noqa: S608  our own names
            (run,),
        )
        return _event(rows[0]) if rows else None

    async def last_warnings(self, run: str) -> list[Event]:
        """Return a run's latest threshold event per kind and percentage, oldest first."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM events WHERE run = ?"  # noqa: S608  our own names
            " AND kind IN ('budget.threshold', 'budget.warning', 'budget.exceeded') ORDER BY seq",
            (run,),
        )
        latest = {(event.kind, event.data.get("threshold")): event for event in map(_event, rows)}
        return sorted(latest.values(), key=lambda event: event.seq)

    async def last_loosenings(self) -> list[Event]:
        """Return the latest loosenings of all runs, oldest first."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM events WHERE kind = 'run.loosened' ORDER BY seq DESC LIMIT 256"  # noqa: S608  ours
        )
        return list(map(_event, reversed(rows)))

    async def last_of_sources(self) -> dict[str, EventKind]:
        """Return, by source, the kind of its latest event."""
        kinds = ("source.degraded", "source.recovered")
        rows = await self._database.rows(
            "SELECT kind, data FROM events WHERE kind IN (?, ?) ORDER BY seq DESC LIMIT 100", kinds
        )
        latest: dict[str, EventKind] = {}
        for kind, data in rows:
            latest.setdefault(str(_decoded_data(data)["source"]), kind)
        return latest

    async def add(self, events: Sequence[tuple[int, str | None, NewEvent, By | None]]) -> list[Event]:
        """Write events in one durable transaction, and return them with their numbers.

        Each is given with its time, its run (None: a source's event) and its cause.
        """
        async with self._database.transaction(durable=True) as transaction:
            for at, run, event, by in events:
                await transaction.add_events(at, run, [event], by)
        return transaction.events

    async def update(self, events: Sequence[tuple[int, EventData]]) -> None:
        """Replace the data of events, each given by its number."""
        async with self._database.transaction(durable=False) as transaction:
            await transaction.executemany(
                "UPDATE events SET data = ? WHERE seq = ?", [(msgspec.json.encode(data), seq) for seq, data in events]
            )


def _event(row: Sequence[Any]) -> Event:
    seq, at, run, kind, encoded, cause = row
    try:
        data = _decoded_data(encoded)
        by = None if cause is None else msgspec.json.decode(cause, type=By)
    except (msgspec.DecodeError, TypeError):  # a damaged byte: keep the event without its data
        data, by = {}, None
    return Event(seq=seq, at=at, run=run, kind=kind, data=data, by=by)


def _decoded_data(encoded: bytes) -> EventData:
    return msgspec.json.decode(encoded, type=EventData)
