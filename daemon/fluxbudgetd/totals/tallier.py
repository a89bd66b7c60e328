"""Summing measured usage into the accounts.

Every change to cells is made here, under the tally lock: a session is summed by one task at a time, so an older tally
cannot replace a newer one. Readings of transcripts are applied under the same lock, so that sums and responses agree.

Long sums are computed in a thread. If the accounts' `version` changed meanwhile, the result is discarded and computed
again. It is applied without an await, so that no task sees half of it.

Lock order: runs (`decisions`) → tally (here) → transcripts' state (`TranscriptStore`) → ledger. A task that holds one
of them may take any that comes later, and never one that comes earlier.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.model import Attachment, Cell, Counts, Reading, Response, Timeline, TranscriptReading, Usage
from fluxbudgetd.policy import attribution, burn
from fluxbudgetd.policy.responses import Delta, records
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals.account import RunAccount, SessionAccount, Sums
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.instances import Instances
from fluxbudgetd.totals.row_store import RowStore
from fluxbudgetd.totals.transcript_store import NAME, TranscriptStore


class _Tally(NamedTuple):
    """The sums of a session's usage in one source. `implied` is the attachment that rows imply."""

    cells: dict[Cell, Counts]
    earliest: int | None
    minutes: dict[int, Counts]
    implied: Attachment | None = None


class Tallier:
    """Sums interstat's rows and the transcripts' responses, session by session.

    `on_measured` is called with a session whose sums, or whose sub-agents, may have changed, in the same step.
    """

    def __init__(
        self,
        accounts: Accounts,
        rows: RowStore,
        transcripts: TranscriptStore,
        instances: Instances,
        writer: LedgerWriter,
        clock: Callable[[], int],
        on_measured: Callable[[str], None],
    ) -> None:
        self._accounts = accounts
        self._rows = rows
        self._transcripts = transcripts
        self._instances = instances
        self._writer = writer
        self._clock = clock
        self._on_measured = on_measured
        self._lock = anyio.Lock()

    async def responses(self, name: str) -> tuple[Usage, ...]:
        """Return the responses of a session's transcripts that count; raises `LedgerError`."""
        async with self._lock:
            return await self._transcripts.usage(name)

    async def put_transcripts(self, name: str, reading: TranscriptReading) -> set[str]:
        """Change the sums by what was read from a session's transcripts; return the other sessions that this changed.

        A copy may complete a response of another session, and so change that session's sums. Raises `LedgerError` if
        the known responses cannot be read; then the sums stay as they were.
        """
        others: set[str] = set()
        async with self._lock:
            deltas = await self._transcripts.apply(name, self._in_order(name, reading))
            for session, delta in deltas.items():
                # If a session's sums are unknown, no request has needed them, so they are not computed here either.
                if session != name and self._accounts.session(session).sums is not Sums.UNKNOWN:
                    await self._apply_delta(session, delta)
                    others.add(session)
                    self._note_responses(session, delta)
            delta = deltas.get(name, Delta())
            await self._apply_delta(name, delta)
            self._note_responses(name, delta)
        return others

    def _note_responses(self, session: str, delta: Delta) -> None:
        # No await since the sums have changed: what a sub-agent has used counts as spent and no longer as reserved.
        self._instances.note_responses(session, delta)
        self._accounts.session(session).note_models(delta.new)
        self._on_measured(session)

    async def watch(self, session: str) -> None:
        """Keep track of what a session's sub-agents use; raises `LedgerError` if their usage so far cannot be read.

        Until this has succeeded, they count as having used nothing. Call it again to retry.
        """
        if self._instances.is_watched(session):
            return
        async with self._lock:
            load = self._instances.begin(session)
        try:
            responses = await self._transcripts.of_sub_agents(session)
            async with self._lock:
                self._instances.finish(load, responses)
        finally:
            self._instances.abandon(load)

    async def put_rows(self, reading: Reading, epoch: int) -> None:
        """Sum the sessions whose rows have changed, and keep those rows for the ledger. Never fails."""
        async with self._lock:
            for name, snapshot in reading.sessions.items():
                session = self._accounts.session(name)
                if snapshot.records is not None:
                    # Rows are saved only if the session was followed before this read or is followed after it.
                    was_followed = self._accounts.is_followed(name)
                    # Summing rows alone would mark the session as complete without its transcripts.
                    is_partial = was_followed and session.sums is Sums.UNKNOWN
                    if is_partial or not await self._sum_rows(name, snapshot.records):
                        self._rows.put(name, snapshot.records)
                        await self._sum_all(name)
                    session = self._accounts.session(name)
                    session.anomalies = snapshot.anomalies
                    if was_followed or self._accounts.is_followed(name):
                        self._rows.put(name, snapshot.records)
                        # Rows that are not kept must be read again when their session joins a run.
                        session.digest = snapshot.digest
                session.rows_epoch = epoch
                self._on_measured(name)

    async def retally(self, name: str) -> None:
        """Sum a session's last measured usage again, after its attachments or the runs have changed. Never fails."""
        async with self._lock:
            await self._sum_all(name)

    async def find_sessions(self, account: RunAccount) -> None:
        """Join the sessions that are known to name a run's scope to it, once, and sum them again. Never raises.

        If the ledger cannot say which these are, all numbers count as stale, and the next call tries again.
        """
        if account.has_sessions:
            return
        if account.run.scope is not None:
            try:
                names = await self._rows.sessions_naming(account.run.scope)
            except LedgerError as exc:
                self._writer.note_unreadable(exc)
                self._accounts.distrust_sums()
                return
            for name in names.difference(account.sessions):
                # It may have counted for another run until this one started.
                if self._accounts.session(name).sums is not Sums.UNKNOWN:
                    await self.retally(name)
                self._accounts.join(account, name)
        account.has_sessions = True

    def _in_order(self, name: str, reading: TranscriptReading) -> TranscriptReading:
        """If the clock was set back, have new lines count for what the session's run is doing now."""
        account = self._accounts.run_of_session(name)
        if account is None or not reading.copies or self._clock() >= account.latest:
            return reading
        if not self._transcripts.has_read(name):
            return reading  # the lines may be older than the session's attachment
        copies = tuple(
            msgspec.structs.replace(copy, at=account.latest)
            if copy.at is not None and copy.at < account.latest
            else copy
            for copy in reading.copies
        )
        return msgspec.structs.replace(reading, copies=copies)

    async def _apply_delta(self, name: str, delta: Delta) -> None:
        if self._accounts.session(name).sums is not Sums.WHOLE or not await self._shift(name, delta):
            await self._sum_all(name)

    async def _shift(self, name: str, delta: Delta) -> bool:
        """Change a session's sums by a delta of its transcripts. Return False if it must be summed again instead."""
        accounts, session = self._accounts, self._accounts.session(name)
        if not session.counts_transcripts:
            return not delta.gone and not delta.new and not self._transcripts.shares(name)
        if not delta.gone and not delta.new:
            return True
        version, attachments = accounts.version, tuple(session.current)
        less = await off_loop(len(delta.gone), _by_cell, delta.gone, attachments, accounts.timelines)
        more = await off_loop(len(delta.new), _by_cell, delta.new, attachments, accounts.timelines)
        total = session.figures[NAME] + sum(more.values(), Counts()) - sum(less.values(), Counts())
        if accounts.version != version or total.total <= 0 or _loses_earliest(session.earliest, delta):
            return False
        accounts.shift_cells(name, less, more, attribution.earliest(_usages(delta.new), attachments))
        now = self._clock()
        gone, new = (burn.by_minute(_usages(responses), now) for responses in delta)
        session.minutes = burn.shifted(session.minutes, gone, new, now)
        session.figures[NAME] = total
        return True

    async def _sum_all(self, name: str) -> None:
        """Sum a session from both sources. Never fails, but without the ledger the sums stay as they were."""
        try:
            responses = await self._transcripts.usage(name)
            records = await self._rows.usage(name)
        except LedgerError as exc:
            self._writer.note_unreadable(exc)
            session = self._accounts.session(name)
            if session.sums is not Sums.UNKNOWN:
                session.sums = Sums.UNREADABLE
            return
        self._writer.note_readable()
        # If its transcripts hold only what counts for other sessions, its rows must not count that again.
        counts_transcripts = self._transcripts.shares(name) or any(
            each.input or each.output or each.cache_read or each.cache_creation for each in responses
        )
        while True:
            version = self._accounts.version
            rows = await self._tally_rows(name, records)
            tally = await self._tally_responses(name, responses, rows.implied) if counts_transcripts else rows
            if self._accounts.version == version:
                break
        session = self._accounts.session(name)
        session.sums, session.counts_transcripts = Sums.WHOLE, counts_transcripts
        session.figures.pop(NAME, None)
        if counts_transcripts:
            session.figures[NAME] = sum(tally.cells.values(), Counts())
        session.note_models(responses if counts_transcripts else records)
        self._put_rows_tally(name, session, rows, records)
        self._put_tally(name, session, tally)

    async def _sum_rows(self, name: str, records: tuple[Usage, ...]) -> bool:
        """Sum interstat's rows of a session, which count unless its transcripts do.

        Return False if the transcripts must be summed again, because the rows now imply another run.
        """
        while True:
            version = self._accounts.version
            rows = await self._tally_rows(name, records)
            if self._accounts.version == version:
                break
        session = self._accounts.session(name)
        has_changed = self._put_rows_tally(name, session, rows, records)
        if session.counts_transcripts:
            return not has_changed
        session.note_models(records)
        self._put_tally(name, session, rows)
        if session.sums is Sums.UNKNOWN:
            session.sums = Sums.ROWS
        return True

    async def _tally_rows(self, name: str, records: tuple[Usage, ...]) -> _Tally:
        accounts = self._accounts
        scopes = {bead: tuple(accounts.scopes.get(bead, ())) for bead in {record.bead for record in records}}
        requested = tuple(accounts.session(name).attachments)
        return await off_loop(
            len(records), _rows_tally, name, records, scopes, requested, accounts.timelines, self._clock()
        )

    async def _tally_responses(self, name: str, responses: tuple[Usage, ...], implied: Attachment | None) -> _Tally:
        requested = tuple(self._accounts.session(name).attachments)
        attachments = requested or (() if implied is None else (implied,))
        return await off_loop(
            len(responses), _responses_tally, responses, attachments, self._accounts.timelines, self._clock()
        )

    def _put_rows_tally(self, name: str, session: SessionAccount, tally: _Tally, records: tuple[Usage, ...]) -> bool:
        """Apply a tally of rows, whether they count or not. Return True if they now imply another run."""
        session.figures[self._rows.source] = sum(tally.cells.values(), Counts())
        self._instances.note_rows(name, records)
        return self._accounts.put_implied(name, tally.implied)

    def _put_tally(self, name: str, session: SessionAccount, tally: _Tally) -> None:
        self._accounts.put_cells(name, tally.cells, tally.earliest)
        session.minutes = tally.minutes


def _rows_tally(
    name: str,
    records: tuple[Usage, ...],
    scopes: attribution.Scopes,
    requested: tuple[Attachment, ...],
    timelines: Mapping[str, Timeline],
    now: int,
) -> _Tally:
    implied = None if requested else attribution.implied_attachment(name, records, scopes)
    attachments = requested or (() if implied is None else (implied,))
    cells = attribution.tally(records, scopes, attachments, timelines)
    return _Tally(cells, attribution.earliest(records, attachments), burn.by_minute(records, now), implied)


def _responses_tally(
    records: tuple[Usage, ...], attachments: tuple[Attachment, ...], timelines: Mapping[str, Timeline], now: int
) -> _Tally:
    cells = attribution.tally(records, {}, attachments, timelines)
    return _Tally(cells, attribution.earliest(records, attachments), burn.by_minute(records, now))


def _by_cell(
    responses: Iterable[Response], attachments: tuple[Attachment, ...], timelines: Mapping[str, Timeline]
) -> dict[Cell, Counts]:
    return attribution.tally(_usages(responses), {}, attachments, timelines)


def _usages(responses: Iterable[Response]) -> Iterator[Usage]:
    return (record for response in responses for record in records(response))


def _loses_earliest(earliest: int | None, delta: Delta) -> bool:
    """Return True if a delta removes a session's earliest response and adds none as early."""

    def is_earliest(response: Response) -> bool:
        return earliest is not None and response.at is not None and response.at <= earliest

    return any(map(is_earliest, delta.gone)) and not any(map(is_earliest, delta.new))
