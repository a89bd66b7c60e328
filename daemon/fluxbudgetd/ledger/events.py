"""Events as stored, in the order of their numbers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fluxbudgetd.ledger.database import Database, NewEvent
from fluxbudgetd.model import Event, EventData, EventKind


class StoredEvents:
    """Events are only ever added. Those of a change to a run are written with it, by `StoredRuns`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, number: int, limit: int) -> list[Event]:
        """Return the first events after a sequence number."""
        rows = await self._database.rows(
            "SELECT seq, at, run, kind, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (number, limit)
        )
        return list(map(_event, rows))

    async def last_number(self) -> int:
        """Return the last event's sequence number; before the first event, the number before its own."""
        rows = await self._database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0][0]) if rows else 0

    async def last_warnings(self, run: str) -> list[Event]:
        """Return a run's latest threshold event per kind and percentage, oldest first."""
        rows = await self._database.rows(
            "SELECT seq, at, run, kind, data FROM events WHERE run = ?"
            " AND kind IN ('budget.threshold', 'budget.warning', 'budget.exceeded') ORDER BY seq",
            (run,),
        )
        latest = {(event.kind, event.data.get("threshold")): event for event in map(_event, rows)}
        return sorted(latest.values(), key=lambda event: event.seq)

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

    async def add(self, events: Sequence[tuple[int, str | None, NewEvent]]) -> None:
        """Write events, each with its time and run (None: a source's event), in one durable transaction."""
        async with self._database.transaction(durable=True) as transaction:
            for at, run, event in events:
                await transaction.add_events(at, run, [event])


def _event(row: Sequence[Any]) -> Event:
    seq, at, run, kind, encoded = row
    try:
        data = _decoded_data(encoded)
    except (msgspec.DecodeError, TypeError):  # a damaged byte: keep the event without its data
        data = {}
    return Event(seq=seq, at=at, run=run, kind=kind, data=data)


def _decoded_data(encoded: bytes) -> EventData:
    return msgspec.json.decode(encoded, type=EventData)
