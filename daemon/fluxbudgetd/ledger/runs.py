"""Runs as stored: each as it is and as it was started, its phases, passed thresholds and attachments."""

from collections.abc import Sequence

import msgspec

from fluxbudgetd.ledger.database import Database, NewEvent, Transaction
from fluxbudgetd.model import Attachment, BudgetThreshold, PhaseRecord, Run
from fluxbudgetd.wire.messages import By


class StoredRuns:
    """Each change is one durable transaction, including the events that report it. `at` is the time of the change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[tuple[Run, Run]]:
        """Return every run as it is and as it was started, oldest first."""
        rows = await self._database.rows("SELECT run, started_as FROM runs ORDER BY started_at, id")
        return [(_decoded_run(current), _decoded_run(started_as)) for current, started_as in rows]

    async def attachments(self) -> list[Attachment]:
        """Return every attachment, each session's oldest first."""
        rows = await self._database.rows("SELECT session, run, since, until, counts_from, origin FROM attachments")
        return [
            Attachment(session=session, run=run, since=since, until=until, counts_from=counts_from, origin=origin)
            for session, run, since, until, counts_from, origin in rows
        ]

    async def completed_phases(self) -> dict[str, list[PhaseRecord]]:
        """Return, by run, the phases that it has completed, oldest first."""
        completed: dict[str, list[PhaseRecord]] = {}
        for run, record in await self._database.rows("SELECT run, record FROM phases ORDER BY run, number"):
            completed.setdefault(run, []).append(msgspec.json.decode(record, type=PhaseRecord))
        return completed

    async def passed_thresholds(self) -> dict[str, frozenset[BudgetThreshold]]:
        """Return, by run, the thresholds that were reported for its current budget."""
        by_run: dict[str, set[BudgetThreshold]] = {}
        for run, kind, pct in await self._database.rows("SELECT run, kind, pct FROM thresholds"):
            by_run.setdefault(run, set()).add(BudgetThreshold(kind, pct))
        return {run: frozenset(fired) for run, fired in by_run.items()}

    async def start(
        self,
        run: Run,
        started_as: Run,
        *,
        completed: Sequence[PhaseRecord] = (),
        attachments: Sequence[Attachment] = (),
        events: Sequence[NewEvent],
        of_others: Sequence[tuple[str, NewEvent]] = (),
        at: int,
        by: By | None = None,
    ) -> None:
        """Write a new run, its completed phases, its first attachments and events, and events of other runs."""
        encoded = msgspec.json.encode(run), msgspec.json.encode(started_as)
        async with self._database.transaction(durable=True) as transaction:
            await transaction.execute(
                "INSERT INTO runs(id, scope, status, started_at, ended_at, run, started_as) VALUES (?,?,?,?,?,?,?)",
                (run.id, run.scope, run.status, run.started_at, run.ended_at, *encoded),
            )
            await _add_phases(transaction, run.id, 0, completed)
            await _put_attachments(transaction, attachments)
            await transaction.add_events(at, run.id, events, by)
            for other, event in of_others:
                await transaction.add_events(at, other, [event], by)

    async def save(
        self,
        run: Run,
        *,
        completed: tuple[int, Sequence[PhaseRecord]] | None = None,
        fired: frozenset[BudgetThreshold] | None = None,
        events: Sequence[NewEvent],
        at: int,
        by: By | None = None,
    ) -> None:
        """Write a changed run.

        `completed` has the number (from 0) of the first phase that it has just left, and all that it has just left.
        `fired`, unless None, replaces the thresholds that were reported.
        """
        async with self._database.transaction(durable=True) as transaction:
            await transaction.execute(
                "UPDATE runs SET scope = ?, status = ?, ended_at = ?, run = ? WHERE id = ?",
                (run.scope, run.status, run.ended_at, msgspec.json.encode(run), run.id),
            )
            if completed is not None:
                await _add_phases(transaction, run.id, *completed)
            if fired is not None:
                await transaction.execute("DELETE FROM thresholds WHERE run = ?", (run.id,))
                await transaction.executemany(
                    "INSERT INTO thresholds(run, kind, pct) VALUES (?,?,?)",
                    [(run.id, *threshold) for threshold in sorted(fired)],
                )
            await transaction.add_events(at, run.id, events, by)

    async def save_attachments(
        self,
        attachments: Sequence[Attachment],
        run: str,
        *,
        events: Sequence[NewEvent],
        of_others: Sequence[tuple[str, NewEvent]] = (),
        at: int,
        by: By | None = None,
    ) -> None:
        """Write attachments, the events of the run that report them, and events of other runs."""
        async with self._database.transaction(durable=True) as transaction:
            await _put_attachments(transaction, attachments)
            await transaction.add_events(at, run, events, by)
            for other, event in of_others:
                await transaction.add_events(at, other, [event], by)


async def _add_phases(transaction: Transaction, run: str, first: int, records: Sequence[PhaseRecord]) -> None:
    await transaction.executemany(
        "INSERT INTO phases(run, number, record) VALUES (?,?,?)",
        [(run, number, msgspec.json.encode(record)) for number, record in enumerate(records, first)],
    )


async def _put_attachments(transaction: Transaction, attachments: Sequence[Attachment]) -> None:
    for attachment in attachments:
        await transaction.execute(
            "INSERT OR REPLACE INTO attachments(session, since, until, run, counts_from, origin) VALUES (?,?,?,?,?,?)",
            (
                attachment.session,
                attachment.since,
                attachment.until,
                attachment.run,
                attachment.counts_from,
                attachment.origin,
            ),
        )


def _decoded_run(encoded: bytes) -> Run:
    return msgspec.json.decode(encoded, type=Run)
